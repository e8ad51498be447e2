"""Several devices, and several processes on one machine or many."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from crest_jax.data.devices import gather
from experiments.config import TrainConfig
from experiments.harness.cli import UserError

TIMEOUT = 600.0  # seconds without a step, with several processes


def start(config: TrainConfig) -> None:
    """Join the other processes, where options or the environment name them, before JAX is used.

    Raises:
      UserError: when the options are incomplete, or the others cannot be reached.
    """
    machine = config.machine
    given = (machine.coordinator, machine.processes, machine.process)
    if not machine.cluster and given == (None, None, None):
        return
    if machine.cluster and given != (None, None, None):
        raise UserError(
            "--machine.cluster takes everything from the environment but --machine.coordinator, "
            "--machine.processes or "
            "--machine.process are given too; pass one or the other."
        )
    if not machine.cluster and None in given:
        raise UserError(
            f"--machine.coordinator is {machine.coordinator}, --machine.processes {machine.processes} "
            "and --machine.process "
            f"{machine.process} but all three must be given; or pass --machine.cluster under SLURM, "
            "Kubernetes or on a TPU pod."
        )
    if machine.processes is not None and not 0 <= (machine.process or 0) < machine.processes:
        raise UserError(
            f"--machine.process is {machine.process} but must lie in [0, {machine.processes}), the "
            "processes; "
            "number them from 0."
        )
    with contextlib.suppress(AttributeError):  # the default of later versions
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(machine.coordinator, machine.processes, machine.process)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes cannot be reached ({str(error).splitlines()[0][:160]}) but all must "
            "start within five minutes with the same --machine.coordinator; look whether it is up."
        ) from error


def make_mesh(devices: int) -> Mesh | None:
    """Return a mesh of so many devices, 0 for all; None for one device in one process.

    Raises:
      UserError: when there are not so many.
    """
    available, processes = jax.device_count(), jax.process_count()
    if devices == 1 and processes == 1:
        return None
    if devices > available:
        raise UserError(
            f"--machine.devices is {devices} but there are {available} {jax.devices()[0].device_kind} "
            "devices; "
            "lower it, or pass 0 for all."
        )
    if processes > 1 and devices not in (0, 1, available):
        raise UserError(
            f"--machine.devices is {devices} but with {processes} processes all {available} devices "
            "work; "
            "leave it out."
        )
    count = available if processes > 1 else devices or available
    return jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])


def device_memory() -> float:
    """Return the bytes of the smallest device, the same in every process; infinity where unknown."""
    statistics = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    own = float(statistics.get("bytes_limit", math.inf))
    return float(np.concatenate(gather(np.array([own]))).min())


def share_out(name: str, inputs: np.ndarray, mesh: Mesh | None, wanted: bool | None) -> bool:
    """Return whether each example is to lie on one device only; see ``MachineConfig.shard``.

    Raises:
      UserError: where that is asked for and cannot be.
    """
    if mesh is None:
        if wanted:
            raise UserError(
                "--machine.shard shares the data out over several devices but there is one; pass "
                "--machine.devices 0."
            )
        return False
    if wanted is None:
        even = len(inputs) % jax.process_count() == 0
        return even and inputs.nbytes > device_memory() / 4
    if wanted and len(inputs) % jax.process_count():
        raise UserError(
            f"{name} holds {len(inputs)} training examples but with --machine.shard their number must "
            "be a "
            f"multiple of the {jax.process_count()} processes; start another number of processes."
        )
    return wanted


def own_share(inputs: np.ndarray) -> np.ndarray:
    """Return the rows that this process's devices hold."""
    share = len(inputs) // jax.process_count()
    return inputs[share * jax.process_index() :][:share]


def leads() -> bool:
    """Return whether this process writes files and talks."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def partners() -> Iterator[None]:
    """End the program with a sentence when a process that it works with has gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} lost another one, but all must live "
            f"({str(error).splitlines()[0][:160]}); start all again with --resume.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # leaving in order would wait for the others
