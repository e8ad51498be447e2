"""Does CREST pay here? What its coresets are worth and what they take, measured in a minute.

A coreset is worth a stratified batch of some size, the *equivalent batch*, that errs as little. It
takes the time of a step on a stratified batch of some size, too. CREST pays where the first is larger.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.algorithm.config import CrestConfig
from crest_jax.algorithm.selector import crest
from crest_jax.baselines.random import stratified_batches
from crest_jax.diagnostics.answer import Pilot
from crest_jax.diagnostics.gradient_error import (
    Gradient,
    GradientErrors,
    measure_errors,
    measure_evenness,
)
from crest_jax.gradients.losses import cross_entropy, per_example, weighted_mean
from crest_jax.loop import TrainStep, View, fit, most_steps, view
from crest_jax.types import (
    ApplyFn,
    Array,
    Batch,
    BatchSelector,
    EmbedFn,
    LossFn,
    Params,
    Source,
)

RESAMPLES = 500
SHORT = 8  # steps that are timed at once
FEWEST, MOST = 16, 256  # steps at which gradients are compared, at each of the points
POINTS = 2
PARTS = 2 + 2 * POINTS  # of which progress tells
ROUNDS = 5  # of timing, kinds of steps alternating


def pilot(
    train_step: TrainStep,
    train_state: Any,
    apply_fn: ApplyFn,
    source: Source,
    *,
    steps: int,
    view: View = view,
    losses: Callable[[Any], Array] | None = None,
    config: CrestConfig | None = None,
    gradient: Gradient | None = None,
    loss_fn: LossFn = cross_entropy,
    embed_fn: EmbedFn | None = None,
    seconds: float = 60.0,
    key: Array | None = None,
    progress: Callable[[str], None] | None = None,
) -> Pilot:
    """Measure whether CREST should do better than a larger stratified batch that takes as long.

    Trains on stratified batches for a part of the seconds. At two points on the way gradients of
    stratified batches and of coresets are compared in training mode, along the steps, so that the age
    of coresets that are kept counts; then steps with and without CREST, and on batches of twice the
    size, are timed in turn. No held-out examples are read. ``print`` the answer to read it in words.

    Args:
      train_step: as for ``crest_jax.fit``, with the schedule of the training asked about; it must leave
        the state that it is given as it is (no donation).
      train_state: the state at the start.
      apply_fn: the model.
      source: the training data.
      steps: of the training asked about.
      view: as for ``fit``.
      losses: as for ``fit``.
      config: settings of CREST; None takes ``CrestConfig.recommended``, with ``batch_norm`` where the
        model has a state, and mini-batches of 128.
      gradient: ``(train_state, batch, key) -> gradient`` of the training loss in training mode; None:
        of the weighted mean of ``loss_fn``.
      loss_fn: per-example losses.
      embed_fn: as for ``crest``.
      seconds: for all of it, without compilation, roughly.
      key: PRNG key; None takes ``jax.random.key(0)``.
      progress: called with a line of text before each part.

    Raises:
      ValueError: when ``steps`` is below 16, ``seconds`` is not positive, the source holds fewer
        examples than two mini-batches, or ``key`` is no PRNG key, before any work; when ``train_step``
        changes the state that it is given.

    Example:
      >>> from crest_jax import ArraySource
      >>> x = np.float32(np.random.default_rng(0).normal(size=(640, 2)))
      >>> source = ArraySource(x, (x[:, 0] > 0).astype(int))
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> def loss(w, batch):
      ...     return jnp.mean(cross_entropy(batch.inputs @ w, batch.labels))
      >>> step = jax.jit(lambda w, batch: (w - 0.1 * jax.grad(loss)(w, batch), None))
      >>> config = CrestConfig.recommended(steps=32, batch_size=16)
      >>> given = step, jnp.zeros((2, 2)), linear, source
      >>> found = pilot(*given, steps=32, view=lambda w: (w, {}), config=config, seconds=0.1)
      >>> found.trained <= 32, found.equivalent_batch > 0, found.time_ratio >= 1
      (True, True, True)
      >>> found.verdict in ("Yes", "Probably yes", "Too close to call", "Probably no", "No")
      True
    """
    steps, seconds = _checked(steps, seconds)
    count, key = _checks.rows_in(source), _checks.default_key(key)
    own = view(train_state)
    if config is None:
        norm = bool(jax.tree.leaves(own[1]))
        config = CrestConfig.recommended(steps=steps, num_examples=count, batch_norm=norm)
    size, say = config.batch_size, progress or (lambda text: None)
    _checks.require(
        2 * size <= count,
        f"the data hold {count} examples but must hold two mini-batches of {size}, for one of twice "
        "the size is timed; lower batch_size.",
    )
    throughout = dataclasses.replace(config, select_from=None, select_until=None, pause_above=1.0)
    coresets = crest(apply_fn, source, throughout, loss_fn=loss_fn, embed_fn=embed_fn)
    plain, double = (stratified_batches(source, k * size) for k in (1, 2))
    if gradient is None:
        gradient = _training_gradient(apply_fn, loss_fn, view)
    clock = _Clock(train_step, view, losses, jax.random.fold_in(key, 1))
    say("compiling")
    measure = partial(measure_errors, gradient, train_step, view=view)
    measure(train_state, plain, coresets, steps=2, key=key)
    _check_kept(own, view(train_state))
    for selector in (plain, coresets, double):
        clock.seconds(selector, train_state)
    each, dear = (clock.seconds(own, train_state) / SHORT for own in (plain, coresets))
    part = steps // (2 * POINTS)
    compare = min(part, int(np.clip(0.5 * seconds / POINTS / (3 * each + 2 * dear), FEWEST, MOST)))
    between = min(part, max(1, int(0.25 * seconds / POINTS / each)))
    found, even, trained = [], [], 0
    for point in range(POINTS):
        point_key = jax.random.fold_in(key, 2 + point)
        say(f"training {between} steps")
        train_state = fit(plain, train_step, train_state, key=point_key, steps=between, view=view)
        say(f"comparing gradients at {compare} steps")
        own_key = jax.random.fold_in(point_key, 1)
        train_state, errors = measure(train_state, plain, coresets, steps=compare, key=own_key)
        found.append(errors)
        if config.region is None:
            even.append(measure_evenness(coresets, *view(train_state), key=own_key))
        trained += between + compare
    say("timing steps")
    once, chosen, twice = clock.medians((plain, coresets, double), train_state, 0.25 * seconds)
    share = sum(map(config.selects, range(steps))) / steps
    ratio = 1 + share * (max(1.0, chosen / once) - 1)
    return _judged(found, even, config.pause_above, steps, trained, ratio, twice / once, size, count)


def _judged(
    found: list[GradientErrors],
    even: list[float],
    pause_above: float,
    steps: int,
    trained: int,
    ratio: float,
    double: float,
    batch_size: int,
    count: int,
) -> Pilot:
    """Weigh the errors at all points, alike, and what a batch of twice the size takes."""
    paused = [value > pause_above for value in even] or [False] * len(found)
    active = [own for own, pauses in zip(found, paused, strict=True) if not pauses]
    share = len(active) / len(found)
    ratio = 1 + (ratio - 1) * share
    most = max(1.0, count / batch_size)  # mini-batches of all data, which have no error

    def size(errors: GradientErrors) -> float:
        return math.log(min(max(errors.equivalent_batch(), 1e-12), most))  # 0 where nothing varies

    points = [size(errors) for errors in active] or [0.0]
    again = zip(*(errors.resampled(RESAMPLES) for errors in active), strict=True)
    logs = [float(np.mean([size(errors) for errors in row])) for row in again] or [0.0]
    low, high = (float(np.exp(x)) for x in np.quantile(np.multiply(share, logs), [0.025, 0.975]))
    variance, bias, signal = (
        float(np.mean([np.mean(getattr(errors, name)) for errors in found]))
        for name in ("variance", "bias", "signal")
    )
    signal = max(signal, 1e-30)
    # The time of a step is taken as linear in the size, through sizes of one and two.
    slope = max(double - 1, 1e-3)
    return Pilot(
        steps=steps,
        trained=trained,
        compared=sum(len(errors.error) for errors in found),
        equivalent_batch=float(np.exp(share * np.mean(points))),
        equivalent_batch_interval=(low, high),
        time_ratio=ratio,
        larger_batch=1 + (ratio - 1) / slope,
        noise=variance / signal,
        bias=math.sqrt(max(0.0, bias) / signal),
        evenness=tuple(even),
        paused=1 - share,
        passes=steps * batch_size / count,
        batch_size=batch_size,
    )


def _checked(steps: Any, seconds: Any) -> tuple[int, float]:
    """Refuse what cannot be asked."""
    brief = _checks.brief
    _checks.positive_int("steps", steps)
    _checks.require(
        steps >= 16, f"steps is {brief(steps)} but must be at least 16; ask about more steps."
    )
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    _checks.require(
        number and 0 < seconds <= 1e9,
        f"seconds is {brief(seconds)} but must be a number in (0, 1e+09]; 60 is usual.",
    )
    return int(steps), float(seconds)


def _check_kept(before: Any, after: Any) -> None:
    """Refuse a step that trains in place or gives its state's memory away."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    _checks.require(
        not any(_gone(a) or not (a is b or bool(np.all(a == b))) for a, b in pairs),
        "train_step changes the train_state that it is given, but a pilot trains from one state "
        "several times; return a new state, without donation (an NNX model: nnx.split it, and "
        "nnx.merge inside the step).",
    )


def _gone(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_deleted()


def _training_gradient(apply_fn: ApplyFn, loss_fn: LossFn, view: View) -> Gradient:
    def gradient(train_state: Any, batch: Batch, key: Array) -> Params:
        params, model_state = view(train_state)

        def loss(params: Params) -> Array:
            logits, _ = apply_fn(params, model_state, batch.inputs, train=True, rng=key)
            losses = per_example(loss_fn, logits, batch.labels)
            return weighted_mean(losses, jnp.asarray(batch.weights))

        return jax.grad(loss)(params)

    return gradient


class _Clock:
    """Times short stretches of training from one state."""

    def __init__(self, train_step: TrainStep, view: View, losses: Any, key: Array) -> None:
        self.train_step, self.key = train_step, key
        self.read = {"view": view, "losses": losses}

    def seconds(self, selector: BatchSelector, train_state: Any) -> float:
        """Return the seconds of ``SHORT`` steps, after as many that are not timed."""
        began = [0.0]

        def on_step(step: int, metrics: Any) -> None:
            if step == SHORT - 1:
                jax.block_until_ready(metrics)
                began[0] = time.perf_counter()

        scan = min(SHORT, most_steps("auto", self.train_step, train_state))
        own = {"key": self.key, "steps": 2 * SHORT, "scan": scan, "on_step": on_step, **self.read}
        jax.block_until_ready(fit(selector, self.train_step, train_state, **own))
        return time.perf_counter() - began[0]

    def medians(
        self, selectors: tuple[BatchSelector, ...], train_state: Any, seconds: float
    ) -> tuple[float, ...]:
        """Return the median seconds of each, in turn, in at least ``ROUNDS`` rounds."""
        rounds: list[list[float]] = []
        began = time.perf_counter()
        while len(rounds) < ROUNDS or time.perf_counter() - began < seconds:
            rounds.append([self.seconds(selector, train_state) for selector in selectors])
        return tuple(float(x) for x in np.median(rounds, axis=0))
