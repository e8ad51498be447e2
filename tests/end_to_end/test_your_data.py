"""The page "your model, your data" runs as it stands, and every task on it is learned."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "your_model_your_data.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
# What a task prints, and what must hold of the numbers found.
LEARNED = {
    "texts": lambda found: found["accuracy"] > 0.9,
    "prices": lambda found: found["error"] < 0.2,
    "tags": lambda found: found["all right"] > 0.8,
    "lines": lambda found: found["accuracy"] > 0.8,  # the first step of each line cannot be known
    "scans": lambda found: found["accuracy"] > 0.95,
    "hugging face": lambda found: found["accuracy"] > 0.95,
    "map-style": lambda found: found["accuracy"] > 0.95,
    "own embedding": lambda found: found["accuracy"] > 0.95,
}


@pytest.fixture(scope="module")
def printed():
    names, shown = {}, io.StringIO()
    with redirect_stdout(shown), jax.numpy_rank_promotion("allow"):  # as users have it
        for block in BLOCKS:
            exec(compile(block, str(PAGE), "exec"), names)
    return shown.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("task", LEARNED)
def test_a_task_of_the_page_is_learned(printed, task):
    line = re.search(rf"^{task} (\{{.*\}})$", printed, re.M)
    assert line is not None, printed
    assert LEARNED[task](eval(line[1])), line[0]


@pytest.mark.slow
def test_the_other_blocks_print_what_they_say(printed):
    assert "grain 1000 examples" in printed
    assert "host (2, 3)" in printed
    assert re.search(r"frame \[[01] [01]\]", printed)


def test_no_task_takes_more_than_forty_lines():
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line.strip()]) <= 40
