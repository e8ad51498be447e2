"""Every script does something when it is called, and needs no extra that it does not use."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config import DATASETS, TEXT_DATASETS
from experiments.harness.run_folder import commit_of
from experiments.presets import SETTINGS

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path for path in (ROOT / "experiments").rglob("*.py") if "\ndef main(" in path.read_text("utf-8")
)
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/README.md")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_when_it_is_called(path: Path) -> None:
    last = path.read_text("utf-8").split('\nif __name__ == "__main__":\n')[1:]
    assert len(last) == 1
    assert "main(" in last[0]


def test_runs_on_images_need_nothing_of_the_extra_for_texts() -> None:
    code = (
        "import sys; sys.modules.update(tokenizers=None, safetensors=None); "
        "import experiments.train, experiments.compare, experiments.report, experiments.pilot"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_name_the_commit_of_their_code(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        found = subprocess.run(
            ["git", *own, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    assert commit_of(tmp_path) is None
    for name in ("crest_jax/a.py", "experiments/b.py", "experiments/results/c.md", "docs/d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = git("rev-parse", "--short", "HEAD")
    for name in ("experiments/results/c.md", "docs/d.md"):
        (tmp_path / name).write_text("two")
    assert commit_of(tmp_path) == clean
    for name in ("crest_jax/a.py", "experiments/new.py"):
        (tmp_path / name).write_text("two")
        assert commit_of(tmp_path) == clean + "+"
        git("stash", "-qu")


def named_modules(text: str) -> set[str]:
    return set(re.findall(r"python -m (experiments(?:\.\w+)+)", text))


def test_every_command_of_pages_and_docstrings_names_a_script() -> None:
    texts = [path.read_text("utf-8") for path in [*PAGES, *SCRIPTS]]
    names = set().union(*map(named_modules, texts))
    assert len(names) > 10
    for name in sorted(names):
        assert hasattr(importlib.import_module(name), "main"), name


def test_every_setting_that_pages_name_is_there_and_every_data_set_is_on_a_page() -> None:
    text = "\n".join(path.read_text("utf-8") for path in [*PAGES, *SCRIPTS])
    named = set(re.findall(r"--setting ([a-z]\w*)", text))
    assert len(named) > 5
    assert named <= SETTINGS.keys()
    page = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    for name in DATASETS + TEXT_DATASETS:
        assert f"`{name}`" in page, name
