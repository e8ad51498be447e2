"""A run of the training script that takes seconds, with selection in the middle of it."""

import subprocess
import sys
from pathlib import Path

from crest_jax import CrestConfig
from experiments.config import TrainConfig

ROOT = Path(__file__).parents[1]
SMALL = TrainConfig(
    dataset="digits",
    model="mlp",
    width=16,
    epochs=4,
    budget=0.75,
    evaluations=4,
    checkpoints=4,
    select_span=(0.2, 0.8),  # random, coresets, random
    crest=CrestConfig(batch_size=64, subset_size=128, probe_size=64, exclude_window=8),
)
STEPS = 69  # 4 epochs of ceil(1442 / 64) = 23 steps, times 0.75


def options(config: TrainConfig) -> list[str]:
    """The command line that gives ``config``."""
    return [
        *("--dataset", config.dataset, "--model", config.model, "--width", str(config.width)),
        *("--epochs", str(config.epochs), "--budget", str(config.budget)),
        *("--evaluations", str(config.evaluations), "--checkpoints", str(config.checkpoints)),
        *("--batch-size", "64", "--subset-size", "128", "--probe-size", "64"),
        *("--exclude-window", "8", "--out", str(config.out), "--select-span", "0.2", "0.8"),
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
