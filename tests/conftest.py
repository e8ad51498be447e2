"""The strictest settings that JAX has: rank promotion raises, warnings are errors."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


def known_to_xla(flag: str) -> str:
    """The flag, or nothing where this release of XLA ends at once because it has no such flag."""
    ends = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": flag},
        capture_output=True,
    )
    return "" if ends.returncode else flag


# One cache of compiled programs for all workers and for the processes that tests start.
OWN = "JAX_COMPILATION_CACHE_DIR" not in os.environ  # made here, and removed at the end
if OWN:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="crest_jax_compiled_")
COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# What is compiled for seconds runs for milliseconds here; ``--slow`` compiles as users do.
if OWN and "--slow" not in sys.argv:  # workers and other processes inherit it
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + known_to_xla(
        " --xla_cpu_use_fusion_emitters=false"  # compiles in half the time
    )
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
    jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "raise")


collect_ignore = ["make_tiny_encoders.py"]  # needs torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: some tests wait for processes that they start."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWN:
        shutil.rmtree(COMPILED, ignore_errors=True)


SLOW = {
    line
    for line in (Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        file, _, _ = item.nodeid.partition("::")
        test, _, _ = item.nodeid.partition("[")
        if SLOW & {file, test, item.nodeid}:
            item.add_marker(pytest.mark.slow)
    if config.getoption("--slow"):
        return
    slow = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(slow)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Free the compiled programs of a module: those of all together exhaust a process's memory maps."""
    yield
    jax.clear_caches()
