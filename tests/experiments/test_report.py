"""Events to JSON lines and back, and tables."""

import json
import math
from typing import NamedTuple

import pytest

from experiments.harness.records import append_line, read_lines, record, table


class Inner(NamedTuple):
    count: int
    share: float


class Outer(NamedTuple):
    step: int
    reason: str
    rho: float | None
    norm: float
    inner: Inner


def test_records_nest_and_hold_only_what_json_can():
    event = Outer(3, "error", None, math.nan, Inner(7, math.inf))
    assert record(event, seed=1, rate=-math.inf, bounds={"low": math.nan, "high": 2.5}) == {
        "step": 3,
        "reason": "error",
        "rho": None,
        "norm": None,
        "inner": {"count": 7, "share": None},
        "seed": 1,
        "rate": None,
        "bounds": {"low": None, "high": 2.5},
    }
    assert record({"step": 0, "flag": False}) == {"step": 0, "flag": False}
    assert record(event, step=9)["step"] == 9, "an extra value wins over a field"


def test_lines_come_back_in_order_and_as_they_were(tmp_path):
    path = tmp_path / "events.jsonl"
    rows = [
        record(Outer(step, "é\n", 0.1 + 0.2, math.nan, Inner(step, 1e-300)), seed=None)
        for step in range(3)
    ]
    for row in rows:
        append_line(path, row)
    assert read_lines(path) == rows
    assert path.read_text(encoding="utf-8").count("\n") == 3
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1])["rho"] == 0.1 + 0.2


def test_a_raw_nan_is_refused_rather_than_written(tmp_path):
    path = tmp_path / "events.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(path, {"loss": math.nan})
    assert not path.exists() or path.read_text(encoding="utf-8") == ""


def test_tables_align_their_columns():
    text = table(["method", "x"], [["random", "82.2"], ["crest (ours)", "9"]])
    assert text == (
        "| method       | x    |\n"
        "|--------------|------|\n"
        "| random       | 82.2 |\n"
        "| crest (ours) | 9    |"
    )
    assert table(["a", "bcd"], []) == "| a | bcd |\n|---|-----|"


def test_a_table_row_of_the_wrong_length_is_an_error():
    with pytest.raises((ValueError, IndexError)):
        table(["a", "b"], [["1"]])
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["1", "2", "3"]])
