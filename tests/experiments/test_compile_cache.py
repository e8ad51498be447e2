"""Compiled programs kept from run to run: found again, and never the end of a run."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT, SMALL, options

PROGRAM = """
import warnings, sys, time
import jax, jax.numpy as jnp
from experiments.harness.compile_cache import keep_compiled
from crest_jax.diagnostics.clock import compile_clock
clock, start = compile_clock(), time.perf_counter()
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: jnp.linalg.svd(x @ x.T)[1].sum())(jnp.ones((50, 50)))))
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "CREST_JAX_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*-cache") if path.is_file())


def test_programs_are_kept_and_a_damaged_one_costs_a_warning(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    kept = files(tmp_path)
    assert kept
    before = [path.stat().st_mtime_ns for path in kept]
    again = run(tmp_path)
    assert again.stdout == first.stdout
    assert [path.stat().st_mtime_ns for path in files(tmp_path)] == before, "nothing is compiled again"
    for path in kept:
        path.write_bytes(b"no program")
    damaged = run(tmp_path)
    assert damaged.returncode == 0, damaged.stderr
    assert damaged.stdout == first.stdout


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    found = run(blocked)
    assert found.returncode == 0, found.stderr
    assert "compiled programs cannot be kept" in found.stderr


@pytest.mark.slow
def test_a_second_run_compiles_for_less_than_a_third_of_the_time(tmp_path: Path) -> None:
    import dataclasses
    import json
    import os

    own = options(SMALL)[:-1]  # without the option that turns the cache off
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["CREST_JAX_CACHE"] = str(tmp_path / "cache")
    spent = []
    for name in ("one", "two"):
        out = dataclasses.replace(SMALL, out=tmp_path / name).out
        subprocess.run(
            [sys.executable, "-m", "experiments.train", *own, "--model", "resnet8", "--out", str(out)],
            cwd=ROOT, env=environment, check=True, capture_output=True,
        )  # fmt: skip
        spent.append(json.loads((out / "metrics.json").read_text())["seconds"]["compile"])
    assert spent[1] < spent[0] / 3
