"""The README: its samples run as they stand, and it stays short."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_training_loop_runs_and_learns(capsys):
    loop = next(block for block in BLOCKS if "train_step" in block)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 42
    exec(compile(loop, "README.md", "exec"), {"__name__": "readme"})
    found = eval(capsys.readouterr().out)
    assert found["accuracy"] > 0.75


def test_the_choice_of_a_coreset_runs():
    names = {"embeddings": np.random.default_rng(0).normal(size=(600, 8)), "labels": np.arange(600) % 3}
    exec(compile(next(b for b in BLOCKS if "embeddings, 128" in b), "README.md", "exec"), names)
    assert names["more"].indices[:128].tolist() == names["coreset"].indices.tolist()
    assert names["enough"].coverage >= 0.9


def test_the_page_is_short():
    lines = README.splitlines()
    assert len(README.encode()) <= 8_000
    assert len(lines) <= 160
    commands = [line for line in lines if line.startswith("python3 -m venv")]
    assert max(len(line) for line in lines if line not in commands) <= 110
