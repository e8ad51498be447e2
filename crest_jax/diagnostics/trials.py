"""A pilot: two minutes on your own model, data and device that say whether CREST should pay.

The argument has three measured parts. At equal steps CREST is ahead of class-stratified random batches
by some points. Its steps take longer by some factor. The time that this costs would have bought random
batches more steps, and those are worth some points per doubling, fewer as training gets longer. CREST
pays at equal time where

    gain_at_equal_time = gain_at_equal_steps - gain_per_doubling * log2(time_ratio) > 0.

All three come from short trials of the real training; nothing is assumed about the model. Seconds are
without compilation, also where a trial compiles its own step: long trainings compile once.
"""

import dataclasses
import math
import numbers
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.algorithm.config import CrestConfig
from crest_jax.algorithm.selector import crest
from crest_jax.baselines.random import stratified_batches
from crest_jax.diagnostics.clock import compile_clock
from crest_jax.diagnostics.variance import Redundancy, measure_redundancy
from crest_jax.gradients.losses import cross_entropy
from crest_jax.types import ApplyFn, Array, BatchSelector, LossFn, ModelState, Params, Source

# (selector, steps, key) -> (params, model_state) after training for so many steps from the start
Train = Callable[[BatchSelector, int, Array], tuple[Params, ModelState]]
Evaluate = Callable[[Params, ModelState], float]
MOST_SEEDS = 8


class Costs(NamedTuple):
    """Seconds of each part, without compilation.

    Attributes:
      step: seconds of one training step with a stratified batch, drawing included; a median.
      selection: seconds of scoring one random subset and selecting one coreset from it; a mean.
      curvature: seconds of gradient and curvature of one region; a median.
      check: seconds of one check of the quadratic model; a median.
    """

    step: float
    selection: float
    curvature: float
    check: float


class Pilot(NamedTuple):
    """What a pilot found.

    A point is one hundredth of accuracy: 83 % is one point more than 82 %.

    Attributes:
      steps: optimizer steps of each trial.
      target: optimizer steps of the training asked about.
      seeds: number of keys that every kind of trial was run with.
      costs: seconds of each part; see ``Costs``.
      time_ratio: seconds of CREST over seconds of stratified batches for equal steps, a number of at
        least 1, without compilation.
      gain_at_equal_steps: points by which CREST is ahead of stratified batches.
      gain_at_equal_steps_error: its standard error, in points.
      gain_per_doubling: points that twice the steps are worth to stratified batches, at ``target``
        steps.
      gain_at_equal_time: points by which CREST should be ahead of stratified batches.
      gain_at_equal_time_error: its standard error, in points, of the trials; what extrapolation adds is
        not in it.
      redundancy: variance that coresets save and how redundant and learned the data are, at the end of
        a trial.
      advice: settings of CREST, with the r and P that the costs suggest.
    """

    steps: int
    target: int
    seeds: int
    costs: Costs
    time_ratio: float
    gain_at_equal_steps: float
    gain_at_equal_steps_error: float
    gain_per_doubling: float
    gain_at_equal_time: float
    gain_at_equal_time_error: float
    redundancy: Redundancy
    advice: CrestConfig

    @property
    def pays(self) -> bool:
        """Whether CREST should be ahead at equal time."""
        return self.gain_at_equal_time > 0


class _Clock:
    """Times phases, and a trial from inside: from the moment when its first batch is asked for.

    Compilation does not count.
    """

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self._compiling = compile_clock()

    def _since(self, start: float) -> float:
        now = time.perf_counter()
        return max(1e-9, now - start - self._compiling.between(start, now))

    def phase(self, name: str, function: Any, *args: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        self.phases.setdefault(name, []).append(self._since(start))
        return result

    def seconds(
        self, train: Train, selector: BatchSelector, steps: int, key: Array
    ) -> tuple[Any, float]:
        """Return what a trial returns, and the seconds from its first batch to its end."""
        marks: list[float] = []

        def next_batch(state: Any) -> Any:
            marks.append(time.perf_counter())
            return selector.next_batch(state)

        own = selector._replace(next_batch=next_batch, traced=None)
        trained = jax.block_until_ready(train(own, steps, key))
        _checks.require(
            len(marks) == steps,
            f"train took {len(marks)} batches but was asked for {steps} steps; take one for each step.",
        )
        taken = self._since(marks[0])
        _checks.require(
            isinstance(trained, (tuple, list)) and len(trained) == 2,
            f"train returned {_checks.brief(trained)} but must return (params, model_state); pass {{}} "
            "for a model without state.",
        )
        return trained, taken


def _is_number(value: Any) -> bool:
    """Return whether a value is one real number: no truth value, no text, no array of several."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        kinds = (jnp.integer, jnp.floating)
        return value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_question(steps: Any, seconds: Any) -> None:
    """Refuse what cannot be asked."""
    brief = _checks.brief
    _checks.positive_int("steps", steps)
    _checks.require(
        steps >= 16, f"steps is {brief(steps)} but must be at least 16; ask about more steps."
    )
    _checks.require(
        _is_number(seconds) and 0 < seconds <= 1e9,
        f"seconds is {brief(seconds)} but must be a number in (0, 1e+09]; 120 is usual.",
    )


def _accuracy(value: Any) -> float:
    """Return what ``evaluate`` returned as a number, or refuse it."""
    number = float(value) if _is_number(value) else math.nan
    # A mean in float32 can be above 1 by a rounding error.
    _checks.require(
        0 <= number <= 1 + 1e-5,
        f"evaluate returned {_checks.brief(value)} but must return one accuracy, a number in [0, 1]; "
        'divide percent by 100, and return found["accuracy"] of what make_evaluate found.',
    )
    return number


def pilot(
    train: Train,
    evaluate: Evaluate,
    apply_fn: ApplyFn,
    source: Source,
    *,
    steps: int,
    config: Callable[[int], CrestConfig] | None = None,
    train_crest: Train | None = None,
    loss_fn: LossFn = cross_entropy,
    seconds: float = 120.0,
    key: Array | None = None,
    progress: Callable[[str], None] | None = None,
) -> Pilot:
    """Measure whether CREST should beat class-stratified random batches at equal wall-clock time.

    Trials train from the start with the whole schedule compressed to their steps: stratified batches
    for half, once and twice as many steps as CREST, with several keys. Where the training asked about
    is longer than the trials, the gain per doubling is extrapolated by its own fall from one doubling
    to the next, and the gain at equal steps is taken as it is.

    Args:
      train: trains from scratch; it must hand losses back through ``selector.observe`` if exclusion is
        to be judged. Called with several numbers of steps and keys.
      evaluate: accuracy in [0, 1] on examples that ``source`` does not hold.
      apply_fn: the model.
      source: the training data.
      steps: optimizer steps of the training asked about.
      config: settings of CREST for a training of so many steps; None takes ``CrestConfig.recommended``.
      train_crest: trains with CREST where that takes other settings (a learning rate of its own, say).
      loss_fn: per-example losses.
      seconds: for all trials together, without compilation, roughly.
      key: PRNG key; None takes ``jax.random.key(0)``.
      progress: called with a line of text before each trial.

    Raises:
      ValueError: when ``steps`` is below 16, ``seconds`` is not positive or ``key`` is no PRNG key,
        before any work; after the first short trial, when ``evaluate`` returns anything but one number
        in [0, 1], or ``train`` other than the steps and the pair that it was asked for.

    Example:
      >>> from crest_jax import ArraySource, fit
      >>> x = np.float32(np.random.default_rng(0).normal(size=(640, 2)))
      >>> source = ArraySource(x, (x[:, 0] > 0).astype(int))
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> def loss(w, batch):
      ...     return jnp.mean(cross_entropy(batch.inputs @ w, batch.labels))
      >>> step = jax.jit(lambda w, batch: (w - 0.1 * jax.grad(loss)(w, batch), None))
      >>> def train(selector, steps, key):
      ...     start = jnp.zeros((2, 2))
      ...     return fit(selector, step, start, key=key, steps=steps, view=lambda w: (w, {})), {}
      >>> def evaluate(w, state):
      ...     return float(jnp.mean(jnp.argmax(x @ w, 1) == (x[:, 0] > 0)))
      >>> config = lambda steps: CrestConfig.recommended(steps=steps, batch_size=16)
      >>> found = pilot(train, evaluate, linear, source, steps=16, config=config, seconds=0.1)
      >>> found.steps <= 16, found.seeds >= 2, found.time_ratio >= 1
      (True, True, True)
    """
    _check_question(steps, seconds)
    steps, seconds = int(steps), float(seconds)
    count = len(source)
    config = config or (lambda steps: CrestConfig.recommended(steps=steps, num_examples=count))
    asked, key, say = config(steps), _checks.default_key(key), progress or (lambda text: None)
    _checks.require(
        asked.exclusion is None or not asked.exclusion.relative,
        "the threshold of exclusion is relative but the pilot counts learned examples at the end only; "
        "pass one in units of the loss.",
    )
    clock, stratified = _Clock(), stratified_batches(source, asked.batch_size)
    say(f"timing {min(steps, 64)} steps")
    length, seeds = _lengths(clock, train, evaluate, stratified, steps, seconds, key)
    own = config(length)
    chosen = crest(apply_fn, source, own, loss_fn=loss_fn, phase=clock.phase)
    say(f"compiling CREST by a trial of {length} steps")
    (train_crest or train)(chosen, length, key)
    clock.phases.clear()
    kinds = {
        "half": (train, stratified, max(8, length // 2)),
        "crest": (train_crest or train, chosen, length),
        "once": (train, stratified, length),
        "twice": (train, stratified, 2 * length),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    trained: tuple[Params, ModelState] = ({}, {})
    for seed in range(seeds):
        for name, (own_train, selector, number) in kinds.items():
            say(f"key {seed + 1} of {seeds}: {name}, {number} steps")
            trial_key = jax.random.fold_in(key, seed)
            ended, taken = clock.seconds(own_train, selector, number, trial_key)
            found[name].append((100 * _accuracy(evaluate(*ended)), taken))
            trained = ended if name == "once" else trained
    redundancy = measure_redundancy(apply_fn, loss_fn, source, asked, trained, key)
    selecting = seeds * ((own.select_until or length) - (own.select_from or 0))
    costs = _costs(clock, float(np.median([taken for _, taken in found["once"]])) / length, selecting)
    advice = advise(asked, costs, redundancy.variance)
    return _judged(found, length, steps, costs, redundancy, advice)


def _lengths(
    clock: _Clock,
    train: Train,
    evaluate: Evaluate,
    selector: BatchSelector,
    steps: int,
    seconds: float,
    key: Array,
) -> tuple[int, int]:
    """Return how long the trials can be, and how many keys fit the seconds."""
    short = min(steps, 64)
    trained, _ = clock.seconds(train, selector, short, key)  # compiles
    _accuracy(evaluate(*trained))
    step_seconds = clock.seconds(train, selector, short, key)[1] / short
    # A key takes 0.5 + 1 + 2 + about 1.5 trials.
    length = int(np.clip(seconds / (3 * 5 * step_seconds), 16, steps))
    return length, int(np.clip(seconds / (5 * step_seconds * length), 2, MOST_SEEDS))


def _costs(clock: _Clock, step: float, selecting: int) -> Costs:
    return Costs(
        step=step,
        selection=sum(clock.phases.get("selection", [])) / max(1, selecting),
        curvature=float(np.median(clock.phases.get("curvature", [0.0]))),
        check=float(np.median(clock.phases.get("check", [0.0]))),
    )


def _judged(
    found: dict[str, list[tuple[float, float]]],
    length: int,
    steps: int,
    costs: Costs,
    redundancy: Redundancy,
    advice: CrestConfig,
) -> Pilot:
    """Weigh the trials, accuracy in percent and seconds of each, against one another."""
    points = {name: np.array([accuracy for accuracy, _ in rows]) for name, rows in found.items()}
    spent = {name: float(np.median([taken for _, taken in rows])) for name, rows in found.items()}
    ratio = max(1.0, spent["crest"] / spent["once"])
    gains, doublings = points["crest"] - points["once"], points["twice"] - points["once"]
    half, once, twice = (float(points[name].mean()) for name in ("half", "once", "twice"))
    per_doubling = gain_per_doubling(half, once, twice, steps / length)
    scale = per_doubling / (twice - once) if twice > once else 0.0
    return Pilot(
        steps=length,
        target=steps,
        seeds=len(gains),
        costs=costs,
        time_ratio=ratio,
        gain_at_equal_steps=float(gains.mean()),
        gain_at_equal_steps_error=_standard_error(gains),
        gain_per_doubling=per_doubling,
        gain_at_equal_time=float(gains.mean()) - per_doubling * math.log2(ratio),
        gain_at_equal_time_error=_standard_error(gains - scale * doublings * math.log2(ratio)),
        redundancy=redundancy,
        advice=advice,
    )


def gain_per_doubling(half: float, once: float, twice: float, factor: float) -> float:
    """Return the points that a doubling is worth at ``factor`` times the steps of the trials.

    The value of a doubling falls by the same factor from one doubling to the next (a power law in the
    steps); it neither grows with the steps nor gets negative.

    Args:
      half: accuracy after half the steps of a trial, in percent.
      once: after a trial.
      twice: after twice the steps.
      factor: steps of the training over those of a trial, at least 1.

    Example:
      >>> gain_per_doubling(80.0, 84.0, 86.0, 1.0), gain_per_doubling(80.0, 84.0, 86.0, 4.0)
      (2.0, 0.5)
    """
    before, after = once - half, max(0.0, twice - once)
    fall = min(1.0, after / before) if before > 0 else 1.0
    return after * fall ** math.log2(max(1.0, factor))


def advise(config: CrestConfig, costs: Costs, variance: dict[int, float]) -> CrestConfig:
    """Return the settings with the r and, with regions, the P that the measured costs suggest.

    ``r`` is the one that leaves the least variance per second (scoring costs in proportion to ``r``);
    ``P`` and the interval grow until curvature and check take less than a tenth of a region's steps.

    Example:
      >>> costs = Costs(step=1.0, selection=0.5, curvature=2.0, check=0.4)
      >>> found = advise(CrestConfig.recommended(steps=1000), costs, {256: 0.4, 512: 0.25, 1024: 0.2})
      >>> found.subset_size
      512
    """
    unit = costs.selection / config.subset_size
    size = min(variance, key=lambda r: variance[r] * (costs.step + unit * r))
    config, own = dataclasses.replace(config, subset_size=size), config.region
    if own is None:
        return config
    wanted = math.ceil((costs.curvature + costs.check) / (0.1 * costs.step)) if costs.step > 0 else 1
    interval = int(np.clip(wanted, 8, 64))
    region = dataclasses.replace(own, max_coresets=interval, max_interval=interval)
    return dataclasses.replace(config, region=region)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))
