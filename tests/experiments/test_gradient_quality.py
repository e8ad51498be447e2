"""Bias and variance of mini-batch gradients, against cases that can be computed by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import TrainConfig
from experiments.harness.build import make_program, shared
from experiments.harness.cli import UserError
from experiments.harness.options import NetworkConfig
from experiments.studies import gradient_quality as quality

RUN = TrainConfig(
    method="stratified", dataset="digits", model="mlp", epochs=2, budget=1.0, batch_size=32,
    network=NetworkConfig(width=16),
)  # fmt: skip


def test_bias_and_variance_of_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    full = np.array([3.0, 4.0])
    shift = np.array([0.3, -0.4])
    gradients = full + shift + rng.normal(size=(4000, 2)) * np.array([1.0, 2.0])
    numbers = quality.bias_and_variance(gradients, full, rng)
    assert numbers["full_norm"] == 5.0
    assert numbers["variance"] == pytest.approx(5.0, rel=0.05)
    assert numbers["bias"] == pytest.approx(0.1, abs=0.02)
    assert numbers["bias"] < numbers["bias_bound"] < 0.14


def test_bound_holds_as_often_as_it_says_and_the_estimate_sees_no_bias_where_none_is() -> None:
    rng = np.random.default_rng(1)
    full = np.array([1.0, 0.0, 0.0])
    held, estimates = 0, []
    for _ in range(200):
        gradients = full + np.array([0.0, 0.05, 0.0]) + rng.normal(size=(60, 3))
        numbers = quality.bias_and_variance(gradients, full, rng, resamples=100)
        held += numbers["bias_bound"] >= 0.05
        unbiased = quality.bias_and_variance(gradients - [0.0, 0.05, 0.0], full, rng, resamples=2)
        estimates.append(unbiased["bias"])
    assert held >= 190
    assert np.mean(np.array(estimates) == 0) > 0.3


def test_full_gradient_is_that_of_the_mean_loss() -> None:
    program = make_program(shared(RUN))
    state = program.init(jax.random.key(0))
    gradient = quality.make_gradient(program)
    found = quality.full_gradient(gradient, program.train, state.params, state.model_state)
    everything = program.train.take(jnp.arange(len(program.train)))
    direct = gradient(state.params, state.model_state, everything, jnp.ones(len(program.train)))
    np.testing.assert_allclose(found, direct, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_coresets_have_less_variance_than_random_batches(tmp_path: Path) -> None:
    config = quality.QualityConfig(
        points=2, count=48, subset_size=128, run=dataclasses.replace(RUN, out=tmp_path / "quality")
    )
    results = quality.measure(config)
    assert [row["step"] for row in results] == [46] * 3 + [92] * 3
    for step in (46, 92):
        found = {row["kind"]: row for row in results if row["step"] == step}
        assert found["coreset"]["variance"] < 0.6 * found["random"]["variance"]
        assert found["stratified"]["variance"] < 1.1 * found["random"]["variance"]
        assert found["random"]["bias"] < 0.5
    assert quality.summarise(results).count("coreset") == 2


def test_numbers_too_small_are_refused() -> None:
    with pytest.raises(UserError, match=r"--points is 0 and --count 48 .* raise them"):
        quality.QualityConfig(points=0, count=48)
