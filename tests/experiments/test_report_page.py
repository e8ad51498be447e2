"""Comparisons over budgets, two runs at a time, and the page that is made of them."""

import base64
import dataclasses
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import compare, report
from experiments.config import TrainConfig
from experiments.harness import report_figures, report_tables
from experiments.harness import runs as runs_of
from experiments.harness.cli import UserError
from experiments.harness.options import NetworkConfig
from experiments.harness.records import read_lines
from experiments.harness.stats import work_in_steps
from experiments.studies import difficulty

RUN = TrainConfig(
    dataset="digits", model="mlp", epochs=4, batch_size=64, network=NetworkConfig(width=16)
)  # fmt: skip
METHODS = ("full", "random", "stratified", "crest", "gradmatch", "forgetting", "el2n", "top_loss")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    options = [
        *("--dataset", "digits", "--model", "mlp", "--network.width", "16", "--epochs", "4"),
        *("--run.evaluations", "4", "--run.checkpoints", "1", "--baselines.reselections", "3"),
        *("--crest.exclusion.window", "8", "--machine.no-compilation-cache"),
        *("--batch-size", "64", "--crest.region.probe-size", "64", "--out", str(out)),
    ]
    compare.main(
        [*options, "--methods", *METHODS, "--seeds", "0", "1", "--full-seeds", "1", "--jobs", "2",
         "--budgets", "0.25", "0.75"]
    )  # fmt: skip
    return out


def test_every_method_runs_at_every_budget(compared: Path) -> None:
    runs = read_lines(compared / "summary.jsonl")
    found = [(run["method"], run["budget"], run["seed"]) for run in runs]
    assert len(found) == len(set(found)) == 1 + 7 * 2 * 2
    assert {run["steps"] for run in runs if run["budget"] == 0.25 and run["method"] != "full"} == {23}
    assert {run["steps"] for run in runs if run["method"] == "full"} == {92}
    least = {0.25: 0.3, 0.75: 0.6}  # of ten classes
    for run in runs:
        bound = 0.8 if run["method"] == "full" else least[run["budget"]]
        if (run["method"], run["budget"]) == ("top_loss", 0.25):
            bound = 0.2  # twice chance: 23 steps on the hardest examples alone teach little
        assert run["test_accuracy"] > bound, (run["method"], run["budget"])
    work = {run["method"]: work_in_steps(run) for run in runs if run["budget"] == 0.25}
    count = 1442
    assert work["random"] == 23
    assert work["gradmatch"] == pytest.approx(23 + 3 * count / 192, rel=1e-6)
    assert work["top_loss"] == pytest.approx(23 + 23 * 128 / 192, rel=1e-6)
    assert work["el2n"] == pytest.approx(23 + 23 + count / 192, rel=1e-6)
    assert work["forgetting"] == pytest.approx(23 + 92 * 4 / 3, rel=1e-6)


def test_the_page_holds_all_pictures_and_the_numbers_of_the_runs(
    compared: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    scores = tmp_path / "scores.npz"
    never = np.where(np.arange(1442) < 9, np.inf, rng.integers(0, 5, 1442))
    np.savez(scores, forgetting=never, el2n=rng.random(1442))
    out = tmp_path / "page" / "report.html"
    out.parent.mkdir()
    report.build(report.ReportConfig(compared, out, scores, pictures=tmp_path / "pictures"))
    text = out.read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    expected = ("accuracy", "split", "regions", "difficulty", "classes", "contact")
    assert names == set(expected)
    assert len(pictures) == len(expected)
    assert all(base64.b64decode(picture)[:4] == b"\x89PNG" for picture in pictures)
    assert text.count('<img alt="') == len(expected), "every picture says what it shows"
    assert '<meta name="viewport"' in text, "readable on a phone"
    assert "Most accurate after 69 steps: " in text
    assert "http" not in re.sub(r"data:[^\"]+", "", text), "the page must need nothing from elsewhere"
    runs = read_lines(compared / "summary.jsonl")
    own = [100 * r["test_accuracy"] for r in runs if r["method"] == "crest" and r["budget"] == 0.75]
    row = re.search(r"<tr><td>crest 75 %</td>(.*?)</tr>", text)
    assert row is not None
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert cells[2].startswith(f"{np.mean(own):.2f} ± ")
    full = next(100 * r["test_accuracy"] for r in runs if r["method"] == "full")
    errors = [100 * abs(value - full) / full for value in own]
    assert cells[3].startswith(f"{np.mean(errors):.2f} ± ")


def test_work_of_a_run_grows_to_its_total(compared: Path) -> None:
    for run in read_lines(compared / "summary.jsonl"):
        curve = [runs_of.work_at(run, point["step"]) for point in run["curve"]]
        assert curve == sorted(curve)
        total = work_in_steps(run)
        assert 0.8 * total <= curve[-1] <= total * (1 + 1e-9)


def test_time_to_accuracy_interpolates_and_may_never_come() -> None:
    points = [(10.0, 0.2), (20.0, 0.6), (30.0, 0.5), (40.0, 0.9)]
    run = {"curve": [{"seconds": s, "accuracy": a} for s, a in points]}
    assert runs_of.seconds_to(run, 0.1) == 5.0
    assert runs_of.seconds_to(run, 0.5) == 17.5
    assert runs_of.seconds_to(run, 0.75) == 36.25
    assert np.isnan(runs_of.seconds_to(run, 0.95))


def test_lengths_of_regions_and_their_growth() -> None:
    def run(*begun: tuple[int, str]) -> runs_of.Run:
        checks = [
            {"step": step, "reason": reason, "began_region": reason in ("start", "error")}
            for step, reason in begun
        ]
        base = {"method": "crest", "budget": 0.1, "steps": 100, "excluded": 7}
        return {**base, "checks": checks}

    growing = run((0, "start"), (2, "error"), (3, "kept"), (6, "error"), (14, "error"))
    ended = run((0, "start"), (2, "error"), (5, "error"), (9, "error"), (40, "span_end"))
    rows = report_tables.region_rows([growing, ended])
    assert rows[1] == ["crest", "2", "4", "3", "32", "58", "1.00 ± 0.00", "7"]


def test_difficulty_of_picks_that_grow_harder_has_rank_correlation_one() -> None:
    scores = np.arange(40.0)
    rising = np.eye(20, 40, k=5, dtype=int) + 0
    flat = np.ones((20, 40), int)
    groups = {"crest": [rising, rising], "stratified": [flat, flat]}
    _, rows = report_figures.difficulty_figure(groups, {"el2n": scores})
    assert rows[1] == ["crest", "1.00 ± 0.00"]


def test_difficulty_scores_agree_with_each_other(tmp_path: Path) -> None:
    run = difficulty.DifficultyConfig(
        **{field.name: getattr(RUN, field.name) for field in dataclasses.fields(RUN)}
    )
    run = dataclasses.replace(run, epochs=12)
    found = difficulty.score(run)
    assert found["forgetting"].shape == found["el2n"].shape == (1442,)
    assert 0 <= found["el2n"].min() < found["el2n"].max() <= np.sqrt(2) + 1e-6
    events = np.where(np.isfinite(found["forgetting"]), found["forgetting"], 20)
    assert len(np.unique(events)) > 2
    assert stats.spearmanr(events, found["el2n"]).statistic > 0.2
    alone = difficulty.score(dataclasses.replace(run, scores=("el2n",)))  # a tenth of the same steps
    assert alone.keys() == {"el2n"}
    np.testing.assert_allclose(alone["el2n"], found["el2n"], atol=1e-5)


def test_a_folder_without_a_comparison_or_runs_is_refused(compared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no summary\.jsonl .*run it first"):
        report.build(report.ReportConfig(tmp_path, tmp_path / "page.html"))
    for name in ("summary.jsonl", "summary.md"):
        shutil.copy(compared / name, tmp_path / name)
    with pytest.raises(UserError, match="holds no run folder of crest"):
        report.build(report.ReportConfig(tmp_path, tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()
    report.build(report.ReportConfig(tmp_path, tmp_path / "page.html", without_picks=True))
    assert "Time to accuracy" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.png"))
    (tmp_path / "summary.jsonl").write_text('{"method": "crest"')
    with pytest.raises(UserError, match="is damaged"):
        report.build(report.ReportConfig(tmp_path, tmp_path / "page.html"))


def status_of(process: int) -> str:
    """What Linux says about a process, empty when it is gone or waits to be buried."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
        command = Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""
    return "" if "State:\tZ" in text else text + command


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the processes of Linux")
def test_workers_end_when_the_program_that_began_them_is_killed(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "experiments.compare", "--dataset", "digits", "--model", "mlp",
        "--epochs", "2000", "--methods", "full", "random", "--jobs", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as program:
        begun = [tmp_path / f"{method}-seed0" / "config.json" for method in ("full", "random")]
        deadline = time.monotonic() + 90
        while not all(path.is_file() for path in begun) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert all(path.is_file() for path in begun)
        everyone = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        workers = [
            process
            for process in everyone
            if f"PPid:\t{program.pid}\n" in status_of(process) and "spawn_main" in status_of(process)
        ]
        assert len(workers) == 2
        program.kill()
    deadline = time.monotonic() + 10
    while any(map(status_of, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(status_of, workers))
