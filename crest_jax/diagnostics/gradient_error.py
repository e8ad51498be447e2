"""How far the gradients of mini-batches are from that of all data, which is never computed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from crest_jax import _checks
from crest_jax.loop import TrainStep, View, take_step
from crest_jax.types import Array, Batch, BatchSelector, ModelState, Params

Gradient = Callable[[Any, Batch, Array], Params]  # (train_state, batch, key) -> gradient
DRAWS = 4  # subsets whose evenness is measured
MEMORY = 19  # steps that momentum of 0.9 sums over, (1 + 0.9) / (1 - 0.9)


class GradientErrors(NamedTuple):
    """Unbiased estimates, one for each step measured, [k] each.

    Attributes:
      variance: of the gradient of a stratified mini-batch.
      error: mean squared distance of a coreset's gradient from that of all data.
      bias: squared distance of its mean from that of all data, a part of the error.
      signal: squared length of the gradient of all data.
    """

    variance: np.ndarray
    error: np.ndarray
    bias: np.ndarray
    signal: np.ndarray

    def equivalent_batch(self) -> float:
        """Return the size of a stratified batch whose error is a coreset's, in mini-batches.

        A bias that is clear, three standard errors above 0, counts as often as the steps that momentum
        sums over, for it does not average out.

        Example:
          >>> values = [np.full(4, x) for x in (1.0, 0.5, 0.0, 2.0)]
          >>> GradientErrors(*values).equivalent_batch()
          2.0
        """
        mean, error = float(np.mean(self.bias)), float(np.std(self.bias)) / len(self.bias) ** 0.5
        lasting = mean if mean > 3 * error else 0.0
        left = float(np.mean(self.error)) + (MEMORY - 1) * lasting
        return float(np.mean(self.variance)) / max(left, 1e-30)

    def resampled(self, count: int, seed: int = 0) -> list["GradientErrors"]:
        """Return as many bootstrap samples of the steps.

        Example:
          >>> GradientErrors(*[np.arange(3.0)] * 4).resampled(2)[0].error.shape
          (3,)
        """
        rng, steps = np.random.default_rng(seed), len(self.error)
        picks = rng.integers(0, steps, (count, steps))
        return [GradientErrors(*(values[own] for values in self)) for own in picks]


@jax.jit
def errors_between(stratified: list[Params], coresets: list[Params]) -> tuple[Array, ...]:
    """Return the four of ``GradientErrors`` by two gradients of each kind at the same parameters.

    Independent errors have no inner product in expectation, so products of two differences that share
    only what is measured are unbiased.

    Example:
      >>> import jax.numpy as jnp
      >>> same = [jnp.ones(2)] * 2
      >>> [float(x) for x in errors_between(same, [2 * x for x in same])]
      [0.0, 2.0, 2.0, 2.0]
    """
    (s1, s2), (c1, c2) = stratified, coresets
    less, dot = optax.tree.sub, optax.tree.vdot
    apart = less(s1, s2)
    a1, a2, b1, b2 = less(c1, s1), less(c1, s2), less(c2, s1), less(c2, s2)
    error = (dot(a1, a2) + dot(b1, b2)) / 2
    return dot(apart, apart) / 2, error, (dot(a1, b2) + dot(a2, b1)) / 2, dot(s1, s2)


def measure_evenness(
    coresets: BatchSelector, params: Params, model_state: ModelState, *, key: Array
) -> float:
    """Return how evenly long examples' gradients are: ``(mean length)^2 / mean length^2``.

    At 1 all are equally long, and no choice of examples pays; see ``CrestConfig.pause_above``. It is
    the mean over four subsets, as they are scored to choose from.

    Args:
      coresets: from ``crest``, choosing anew at each of the first steps.
      params: parameters.
      model_state: model state.
      key: PRNG key.

    Raises:
      ValueError: where coresets are kept in regions, or none is chosen in the first steps.

    Example:
      >>> import jax.numpy as jnp
      >>> from crest_jax import ArraySource, CrestConfig, crest
      >>> source = ArraySource(np.eye(8, dtype=np.float32), np.arange(8) % 2)
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> config = CrestConfig.recommended(steps=10, batch_size=4, num_examples=8)
      >>> selector = crest(linear, source, config)
      >>> round(measure_evenness(selector, jnp.zeros((8, 2)), {}, key=jax.random.key(0)), 3)
      1.0
    """
    state, seen = coresets.init(key, params, model_state), []
    for _ in range(DRAWS):
        before = state.num_selected
        state, _ = coresets.refresh(state, params, model_state)
        _checks.require(
            state.num_selected > before,
            "no coreset is chosen in the first steps but must be to measure evenness; pass a selector "
            "with select_from=None and select_until=None.",
        )
        _checks.require(
            state.evenness is not None,
            "coresets are kept in regions but must be chosen at every step to measure evenness; pass a "
            "selector with region=None.",
        )
        seen.append(float(state.evenness))
        state, _ = coresets.next_batch(state)
    return float(np.mean(seen))


def measure_errors(
    gradient: Gradient,
    train_step: TrainStep,
    train_state: Any,
    stratified: BatchSelector,
    coresets: BatchSelector,
    *,
    steps: int,
    view: View,
    key: Array,
) -> tuple[Any, GradientErrors]:
    """Train on stratified batches, and at every step compare gradients of two of each kind.

    Args:
      gradient: that of the training loss on a mini-batch, in training mode.
      train_step: see ``fit``.
      train_state: where to begin.
      stratified: random mini-batches, stratified by class.
      coresets: another way of choosing as many examples.
      steps: k.
      view: see ``fit``.
      key: PRNG key.

    Returns:
      The state after the steps, and the estimates.

    Example:
      >>> import jax.numpy as jnp
      >>> from crest_jax import ArraySource, random_batches
      >>> source = ArraySource(np.arange(8, dtype=np.float32), np.zeros(8, int))
      >>> batches = random_batches(source, 2)
      >>> mean = lambda w, batch, key: w - jnp.average(batch.inputs, weights=batch.weights)
      >>> step = lambda w, batch: (w, None)
      >>> given = mean, step, jnp.zeros(()), batches, batches
      >>> options = {"steps": 4, "view": lambda w: (w, {}), "key": jax.random.key(0)}
      >>> measure_errors(*given, **options)[1].error.shape
      (4,)
    """
    first = view(train_state)
    *keys, step_key = jax.random.split(key, 6)
    selectors = [stratified, stratified, coresets, coresets, stratified]
    states = [own.init(k, *first) for own, k in zip(selectors, keys, strict=True)]
    one, rows = jax.jit(gradient), []
    for _ in range(steps):
        batches = []
        for place, own in enumerate(selectors):
            states[place], _ = own.refresh(states[place], *view(train_state))
            states[place], batch = own.next_batch(states[place])
            batches.append(batch)
        *own_keys, step_key = jax.random.split(step_key, 5)
        found = [one(train_state, *given) for given in zip(batches[:4], own_keys, strict=True)]
        rows.append(errors_between(found[:2], found[2:]))
        train_state, _ = take_step(train_step, train_state, batches[4])
    return train_state, GradientErrors(*np.asarray(jax.device_get(rows), np.float64).T)
