"""A run of the training script that takes seconds, with selection in the middle of it."""

import subprocess
import sys
from pathlib import Path

from experiments.config import TrainConfig
from experiments.harness.options import (
    CrestOptions,
    ExclusionOptions,
    MachineConfig,
    NetworkConfig,
    RegionOptions,
    RunConfig,
)

ROOT = Path(__file__).parents[1]
SMALL = TrainConfig(
    dataset="digits",
    model="mlp",
    epochs=4,
    budget=0.75,
    batch_size=64,
    network=NetworkConfig(width=16),
    run=RunConfig(evaluations=4, checkpoints=4),
    crest=CrestOptions(
        region=RegionOptions(probe_size=64),
        select_span=(0.2, 0.8),  # random, coresets, random
        exclusion=ExclusionOptions(window=8),
    ),
    machine=MachineConfig(compilation_cache=False),
)
STEPS = 69  # 4 epochs of ceil(1442 / 64) = 23 steps, times 0.75


def options(config: TrainConfig) -> list[str]:
    """The command line that gives ``config``."""
    return [
        *("--dataset", config.dataset, "--model", config.model),
        *("--network.width", str(config.network.width), "--batch-size", "64"),
        *("--epochs", str(config.epochs), "--budget", str(config.budget)),
        *("--run.evaluations", str(config.run.evaluations)),
        *("--run.checkpoints", str(config.run.checkpoints), "--crest.region.probe-size", "64"),
        *("--crest.exclusion.window", "8", "--out", str(config.out)),
        *("--crest.select-span", "0.2", "0.8", "--machine.no-compilation-cache"),
    ]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def damage(step_folder, how):
    """Spoil every larger file of a checkpoint."""
    for path in step_folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            content = bytearray(path.read_bytes())
            if how == "cut":
                del content[len(content) // 2 :]
            else:
                content[len(content) // 2] ^= 255
            path.write_bytes(bytes(content))
