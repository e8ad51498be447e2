"""Errors of mini-batch gradients, against cases that can be computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crest_jax import Batch
from experiments.config import TrainConfig
from experiments.harness.build import make_program, shared
from experiments.harness.cli import UserError
from experiments.harness.options import NetworkConfig
from experiments.presets import SETTINGS, Setting
from experiments.studies import gradient_quality as quality
from experiments.studies import gradient_quality_page as page

RUN = TrainConfig(
    method="stratified", dataset="digits", model="mlp", epochs=2, budget=1.0, batch_size=32,
    network=NetworkConfig(width=16),
)  # fmt: skip


def test_errors_of_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    full, shift = np.array([3.0, 4.0]), np.array([0.3, -0.4])
    gradients = full + shift + rng.normal(size=(4000, 2)) * np.array([1.0, 2.0])
    found = quality.errors_of(gradients, full)
    assert found.variance == pytest.approx(5.0, rel=0.05)
    assert found.bias == pytest.approx(0.5, abs=0.1)
    assert found.squared.mean() == pytest.approx(5.25, rel=0.05)
    unbiased = [quality.errors_of(full + rng.normal(size=(60, 2)), full).bias for _ in range(200)]
    assert np.mean(np.array(unbiased) == 0) > 0.3


def test_the_equivalent_batch_is_on_the_line_of_stratified_batches() -> None:
    sizes, reached = [1, 2, 4], [1.0, 0.5, 0.3]
    for size, error in zip(sizes, reached, strict=True):
        assert page.size_with_error(error, sizes, reached) == pytest.approx(size)
    assert page.size_with_error(2.0, sizes, reached) == pytest.approx(0.5)
    assert 4 < page.size_with_error(0.2, sizes, reached) < 8


def test_the_gradient_of_all_data_is_that_of_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "digits", Setting(RUN))
    own = quality.Measurement(quality.QualityConfig(setting="digits", count=2))
    program = make_program(shared(RUN))
    state, count = program.init(jax.random.key(0)), len(program.train)
    found = own.full(jax.random.key(1), state)
    rows = jnp.arange(count)
    direct = own.gradient(
        state, jax.random.key(2), Batch(*program.train.take(rows), jnp.ones(count), rows)
    )
    # All but the examples that no whole mini-batch is left for.
    assert np.linalg.norm(found - direct) < 0.05 * np.linalg.norm(direct)


def test_lengths_are_those_of_each_examples_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "digits", Setting(RUN))
    monkeypatch.setattr(quality, "LENGTHS_OF", 8)
    own = quality.Measurement(quality.QualityConfig(setting="digits", count=2))
    state, key = own.program.init(jax.random.key(0)), jax.random.key(1)
    lengths, last = own.lengths(key, state)
    rows = own.drawn(key, quality.one_class(len(own.source)), 8)
    for place, row in enumerate(rows):
        batch = Batch(*own.source.take(row[None]), jnp.ones(1), row[None])
        alone = own.program.gradient(state, batch)
        assert lengths[place] == pytest.approx(float(optax.tree.norm(alone)), rel=1e-5)
    assert (last <= lengths * (1 + 1e-5)).all()
    assert (last > 0).all()


@pytest.mark.slow
def test_fresh_coresets_have_less_error_than_random_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "digits", Setting(RUN))
    config = quality.QualityConfig(
        setting="digits", points=(0.5, 1.0), count=48, subsets=(4,), ages=(0, 8),
        embeddings=("last_layer",),
    )  # fmt: skip
    results = quality.measure(config)
    assert sorted({row["step"] for row in results}) == [46, 92]
    for step in (46, 92):
        found = {r["kind"]["name"]: np.mean(r["squared"]) for r in results if r["step"] == step}
        base = found["stratified, 1m"]
        assert found["stratified, 4m"] < 0.4 * base
        for picks in ("importance", "medoids"):
            assert found[f"{picks}, last layer, r = 4m, age 0"] < 0.7 * base
    assert page.summarise(results).count("importance") == 4
    for row in results:
        assert 0 < row["left_by_lengths"]["all"] <= row["left_by_lengths"]["last_layer"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": (0.0,)}, r"--points is \(0.0,\) .* change them"),
        ({"subsets": (0,)}, r"--subsets is \(0,\) .* change them"),
        ({"embeddings": ("pixels",)}, r"--embeddings is .* must be of last_layer and logits"),
        ({"setting": "none"}, "--setting is none but must be one of"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields, message) -> None:
    with pytest.raises(UserError, match=message):
        quality.QualityConfig(**fields)
