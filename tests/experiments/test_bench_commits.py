"""Two checkouts against each other."""

import json
import sys

import pytest
from small_run import ROOT

from experiments.benchmarks import commits
from experiments.benchmarks.commits import CommitsConfig
from experiments.harness.cli import UserError


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"before is .* but must be a checkout of crest_jax; name one"):
        CommitsConfig(tmp_path, ROOT)
    with pytest.raises(UserError, match=r"--rounds is 0 and --trainings 3 but they must be at least"):
        CommitsConfig(ROOT, ROOT, rounds=0)


def test_the_page_has_the_medians_and_the_ratio_of_each_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["commits", "before", "after"])
    pairs = [(0.2, 0.1), (0.3, 0.3), (0.4, 0.3)]
    lines = [{"name": "one", "turn": i, "before": a, "after": b} for i, (a, b) in enumerate(pairs)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    commits.write_page(CommitsConfig(ROOT, ROOT, tmp_path))
    cells = [cell.strip() for cell in (tmp_path / "page.md").read_text().splitlines()[-1].split("|")]
    assert cells[1:-1] == ["one", "300 ms", "300 ms", "0.75", "0.62", "0.88", "3"]


@pytest.mark.slow
def test_one_checkout_is_as_fast_as_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["commits", "before", "after"])
    commits.compare(CommitsConfig(ROOT, ROOT, tmp_path, rounds=3, trainings=0))
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * len(commits.selections())
    assert all(0.2 < line["after"] / line["before"] < 5 for line in lines)
