"""The strictest settings that JAX has: rank promotion raises, warnings are errors."""

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


collect_ignore = ["make_tiny_encoders.py"]  # needs torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


SLOW_NOTEBOOKS = {"04_language.ipynb"}  # needs `pip install --no-deps`, as it says


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW_NOTEBOOKS:
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
