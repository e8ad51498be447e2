"""The study of picks."""

from pathlib import Path

import numpy as np
import pytest

from experiments.studies import picks


def test_difficulty_of_picks_is_that_of_all_examples_where_all_are_picked(tmp_path: Path) -> None:
    scores, even, hard = np.array([0.0, 1.0, 2.0]), np.ones((20, 3), int), np.zeros((20, 3), int)
    hard[:10, 2] = hard[10:, 1] = 4
    for name, counts in (("random-seed1", even), ("crest-seed1", hard), ("crest-seed2", hard)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "picks.npz", counts=counts)
    np.savez(tmp_path / "scores.npz", el2n=scores)
    runs = [str(tmp_path / name) for name in ("random-seed1", "crest-seed1", "crest-seed2")]
    out = tmp_path / "out"
    rest = ["--scores", str(tmp_path / "scores.npz"), "--out", str(out)]
    picks.main(["--runs", *runs, *rest])
    rows = [line.split("|")[1:-1] for line in (out / "summary.md").read_text().splitlines()[2:6]]
    assert [cell.strip() for cell in rows[2]] == ["random", "1", "1.00", "1.00"]
    assert [cell.strip() for cell in rows[3]] == [
        "CREST (recommended)", "2", "2.00 ± 0.00", "1.00 ± 0.00"
    ]  # fmt: skip
    assert (out / "difficulty.png").stat().st_size > 10_000
    np.savez(tmp_path / "crest-seed1" / "picks.npz", counts=even[:, :2])
    refused = [
        ([*runs, *rest], "with 2 examples but --scores has 3"),
        ([runs[0], *runs[:1], *rest], "2 folders of 1 runs"),
        ([str(tmp_path), *rest], "named WAY-seedN"),
        ([str(tmp_path / "paper-seed1"), *rest], "has no picks.npz"),
        ([runs[0], *rest[2:], "--scores", str(tmp_path / "no.npz")], "no.npz is not there"),
    ]
    for argv, sentence in refused:
        with pytest.raises(SystemExit, match=sentence):
            picks.main(["--runs", *argv])
