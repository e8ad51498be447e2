"""The notebooks are executed by nbmake; here, that both halves of each pair say the same."""

from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_script_and_notebook_say_the_same(path: Path) -> None:
    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))
    pairs = [[(cell.cell_type, cell.source) for cell in half.cells] for half in (notebook, script)]
    assert pairs[0] == pairs[1]
    assert all(not cell.get("outputs") for cell in notebook.cells)
