#!/usr/bin/env bash
# Start the training script in two processes on this machine, two virtual devices each; options go to both.
set -euo pipefail
cd "$(dirname "$0")/../.."
export XLA_FLAGS="--xla_force_host_platform_device_count=2 ${XLA_FLAGS:-}"
python=$(command -v python || command -v python3)
[ -x .venv/bin/python ] && python=.venv/bin/python
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
for process in 0 1; do
  "$python" -m experiments.train --machine.coordinator "localhost:$port" --machine.processes 2 --machine.process "$process" "$@" &
done
wait -n && wait -n
