"""The loops that are made to be copied run and learn."""

import ast
import importlib.util
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_five_examples() -> None:
    names = {path.stem for path in EXAMPLES}
    assert names == {"plain_jax_loop", "linen_loop", "nnx_loop", "equinox_loop", "scanned_loop"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    imports = (ast.Import, ast.ImportFrom)
    own = [node for node in ast.parse(text).body[1:] if not isinstance(node, imports)]
    code = text.splitlines()[min(node.lineno for node in own) - 1 :]
    assert len([line for line in code if line.strip()]) <= 40


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_learns(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(steps=60) > 0.7
    assert "% of 2000 test images" in capsys.readouterr().out
