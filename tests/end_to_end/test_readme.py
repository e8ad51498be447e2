"""The README: its samples run as they stand, and it stays short."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_the_question_whether_to_use_it_can_be_asked_as_its_page_says(capsys):
    page = (ROOT / "docs" / "should_i_use_it.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        assert "steps=200," in block
        exec(compile(block.replace("steps=200,", "steps=32, seconds=0.1,"), "page", "exec"), names)
        found = names.pop("found")
        assert found.steps == 32
        assert found.worth_interval[0] <= found.worth <= found.worth_interval[1]
    assert "pilot" in names
    said = capsys.readouterr().out
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1].splitlines()
    assert said.splitlines()[0] == shown[0] == "compiling"
    assert "above 1 it beats a larger batch that takes as long." in said


def test_the_page_is_short():
    lines = README.splitlines()
    assert len(README.encode()) <= 8_000
    assert len(lines) <= 160
    commands = [line for line in lines if line.startswith("python3 -m venv")]
    assert max(len(line) for line in lines if line not in commands) <= 110
