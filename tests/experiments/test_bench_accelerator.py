"""Programs for accelerators, compiled without one: kernels within their budgets, and no waits."""

import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import accelerator, ahead_of_time

MISSING = ahead_of_time.missing_packages()


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed: pip install -e '.[accelerator]'")
def test_kernels_keep_to_their_budgets_and_nothing_waits(tmp_path):
    out = tmp_path / "counts"
    names = "^(draw|8 subsets|16 coresets|CRAIG|10 picks|end of)"
    command = [sys.executable, "-m", "experiments.benchmarks.accelerator", "count"]
    # The flags of the tests are for CPUs.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    done = subprocess.run(
        [*command, "--only", names, "--out", str(out)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]
    assert {line["device"] for line in lines} == {"h100", "v5e"}, "all compile for a TPU"
    found = {line["name"]: line for line in lines if line["device"] == "h100"}
    assert set(accelerator.BUDGETS) <= set(found)
    for name, budget in accelerator.BUDGETS.items():
        assert found[name]["kernels"] <= budget, name
        assert found[name]["waits"] == 0, name
    assert found["end of a window"]["per_turn"] == [], "a condition, no loop"
    assert "| draw with exclusion" in (out / "page.md").read_text()


def test_loops_count_as_often_as_they_turn():
    text = """HloModule m
%body (x: f32[]) -> f32[] {
  %a = f32[] fusion(%x), kind=kLoop
  ROOT %b = f32[] copy(%a)
}
%condition (x: f32[]) -> pred[] {
  ROOT %c = pred[] fusion(%x), kind=kLoop
}
%other (x: f32[]) -> f32[] {
  ROOT %d = f32[] fusion(%x), kind=kLoop
}
ENTRY %main (x: f32[]) -> f32[] {
  %w = f32[] while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %u = f32[] while(%w), condition=%condition, body=%body
  ROOT %k = f32[] conditional(%p, %u, %u), true_computation=%body, false_computation=%other
}
"""
    assert ahead_of_time.counted(text) == (10 + 2, 2, (3,))


def test_counting_needs_its_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead_of_time, "missing_packages", lambda: ["libtpu"])
    monkeypatch.setattr(sys, "argv", ["accelerator", "count", "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as ended:
        accelerator.main()
    assert "libtpu is not installed but counting needs it; pip install" in str(ended.value.code)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_programs_are_timed_where_jax_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv",
        ["accelerator", "time", "--only", "^draw|error", "--rounds", "2", "--out", str(tmp_path / "t")],
    )  # fmt: skip
    accelerator.main()
    page = (tmp_path / "t" / "page.md").read_text()
    assert "draw with exclusion" in page
    assert "error of a product, precision highest" in page
