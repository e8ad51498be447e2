"""Schedules and optimizers against their formulas, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.harness.optim import optimizer, schedule

STEPS = 40


def rates(rate: optax.Schedule, steps: int) -> np.ndarray:
    return np.asarray(jax.vmap(rate)(jnp.arange(steps)))


@pytest.mark.parametrize(("warmup_fraction", "warmup"), [(0.0, 0), (0.1, 4)])
def test_step_schedule(warmup_fraction: float, warmup: int) -> None:
    expected = np.full(STEPS, 0.3)
    expected[20:] = 0.06
    expected[30:] = 0.012
    expected[:warmup] = 0.3 * (np.arange(warmup) + 1) / (warmup + 1)
    rate = schedule("step", 0.3, STEPS, warmup_fraction=warmup_fraction, drop_factor=0.2)
    np.testing.assert_allclose(rates(rate, STEPS), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("warmup_fraction", "warmup"), [(0.0, 0), (0.25, 10)])
def test_cosine_schedule(warmup_fraction: float, warmup: int) -> None:
    step = np.arange(STEPS)
    expected = 0.15 * (1 + np.cos(np.pi * (step - warmup) / (STEPS - warmup)))
    expected[:warmup] = 0.3 * (step[:warmup] + 1) / (warmup + 1)
    rate = schedule("cosine", 0.3, STEPS, warmup_fraction=warmup_fraction)
    np.testing.assert_allclose(rates(rate, STEPS), expected, rtol=1e-5, atol=1e-7)


def test_linear_schedule() -> None:
    rate = schedule("linear", 0.3, 20, warmup_fraction=0.2)
    warm = [0.3 * (t + 1) / 5 for t in range(4)]
    down = [0.3 * (20 - t) / 16 for t in range(4, 20)]
    np.testing.assert_allclose(rates(rate, 20), [*warm, *down], rtol=1e-6)


@pytest.mark.parametrize("kind", ["step", "cosine", "linear"])
def test_a_smaller_budget_compresses_the_schedule(kind: str) -> None:
    long = rates(schedule(kind, 0.1, 4000), 4000)[::10]
    short = rates(schedule(kind, 0.1, 400), 400)
    np.testing.assert_allclose(short, long, atol=0.1 * 0.025)
    assert short.min() > 0.0


def test_drops_that_fall_on_one_step_both_count() -> None:
    rate = schedule("step", 1.0, 2, warmup_fraction=0.0, drops=(0.5, 0.6))
    np.testing.assert_allclose(rates(rate, 2), [1.0, 0.01], rtol=1e-5)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_follows_pytorchs_recurrence(momentum: float, nesterov: bool) -> None:
    curvature, decay = np.array([1.0, 3.0]), 0.05
    rate = schedule("step", 0.1, 8)
    tx = optimizer("sgd", rate, momentum=momentum, nesterov=nesterov, weight_decay=decay)

    params = jnp.array([2.0, -1.0])
    state = tx.init(params)
    update = jax.jit(tx.update)
    expected, buffer = np.array([2.0, -1.0]), np.zeros(2)
    for step in range(8):
        updates, state = update(jnp.asarray(curvature, jnp.float32) * params, state, params)
        params = optax.apply_updates(params, updates)
        gradient = curvature * expected + decay * expected
        buffer = momentum * buffer + gradient
        direction = gradient + momentum * buffer if nesterov else buffer
        expected = expected - float(rate(step)) * direction
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_adamw_decays_apart_from_the_gradient() -> None:
    params, gradients = np.array([2.0, -1.0]), np.array([[1.0, 0.5], [-0.2, 0.4], [0.1, 0.1]])
    tx = optimizer("adamw", 0.01, momentum=0.8, weight_decay=0.1)
    actual = jnp.asarray(params, jnp.float32)
    state = tx.init(actual)
    first, second = np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(gradients, start=1):
        updates, state = tx.update(jnp.asarray(gradient, jnp.float32), state, actual)
        actual = optax.apply_updates(actual, updates)
        first = 0.8 * first + 0.2 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        adam = (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        params = params - 0.01 * (adam + 0.1 * params)
    np.testing.assert_allclose(actual, params, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule("constant", 0.1, 10), "kind is 'constant'"),
        (lambda: schedule("step", 0.0, 10), r"peak is 0\.0, but must be finite, above 0"),
        (lambda: schedule("step", 0.1, 0), "steps is 0"),
        (lambda: schedule("step", 0.1, 10, warmup_fraction=1.5), "warmup_fraction is 1.5"),
        (lambda: schedule("step", 0.1, 10, drops=(0.75, 0.5)), "must rise"),
        (lambda: schedule("step", 0.1, 10, drops=(0.05,)), "drops entry is 0.05"),
        (lambda: schedule("step", 0.1, 10, drop_factor=0.0), "drop_factor is 0.0"),
        (lambda: optimizer("adam", 0.1), "kind is 'adam'"),
        (lambda: optimizer("sgd", 0.1, momentum=1.0), "momentum is 1.0.*below 1"),
        (lambda: optimizer("sgd", 0.1, weight_decay=float("nan")), "weight_decay is nan"),
        (lambda: optimizer("sgd", 0.1, momentum=0.0, nesterov=True), "nesterov is True"),
    ],
)
def test_errors_are_sentences(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
