"""A pilot: two minutes on your own model, data and device that say whether CREST should pay.

The argument has three measured parts. At equal steps CREST is ahead of class-stratified random batches
by some points (the *gain*). Its steps take longer by some factor (the *ratio*). The time that this
costs would have bought random batches more steps, and those are worth some points per doubling (the
*slope*, which falls as training gets longer). CREST pays at equal time where

    lead = gain - slope * log2(ratio) > 0.

All three come from short trials of the real training; nothing is assumed about the model. Seconds are
without compilation, also where a trial compiles its own step: long trainings compile once.
"""

import dataclasses
import functools
import math
import numbers
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.classes import classes_of
from crest_jax.config import CrestConfig
from crest_jax.crest import crest
from crest_jax.embeddings import embed_rows, logit_gradients
from crest_jax.losses import cross_entropy
from crest_jax.medoids import medoids
from crest_jax.sampling import stratified_batches
from crest_jax.streams import make_strata, next_subset, open_stream
from crest_jax.types import ApplyFn, Array, LossFn, ModelState, Params, Selection, Source

# (selection, steps, key) -> (params, model_state) after training for so many steps from the start
Train = Callable[[Selection, int, Array], tuple[Params, ModelState]]
Evaluate = Callable[[Params, ModelState], float]
SUBSETS = (2, 4, 8)  # r over m, compared by the variance that they leave
POOL = 4096  # rows on which variance and redundancy are measured
DRAWS = 64  # mini-batches of each kind
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
      ratio: seconds of CREST over seconds of stratified batches for equal steps, a number of at least
        1, without compilation.
      gain: points by which CREST is ahead of stratified batches at equal steps.
      gain_error: standard error of ``gain``, in points.
      slope: points that twice the steps are worth to stratified batches, at ``target`` steps.
      lead: points by which CREST should be ahead at equal seconds.
      lead_error: standard error of ``lead``, in points, of the trials; what extrapolation adds is not
        in it.
      variance: by subset size r in examples, the variance of a coreset's mean embedding over that of a
        stratified batch's, a ratio.
      learned: share in [0, 1] of the examples whose loss is below ``exclude_below``.
      covered: share, at most 1, of a subset's spread (r = 4m) that its m medoids stand for: redundancy.
      advice: settings of CREST, with the r, P and reuse that the costs suggest.
    """

    steps: int
    target: int
    seeds: int
    costs: Costs
    ratio: float
    gain: float
    gain_error: float
    slope: float
    lead: float
    lead_error: float
    variance: dict[int, float]
    learned: float
    covered: float
    advice: CrestConfig

    @property
    def pays(self) -> bool:
        """Whether CREST should be ahead at equal time."""
        return self.lead > 0


class CompileClock:
    """Seconds that JAX has spent tracing, lowering and compiling, nested traces counted once.

    Example:
      >>> clock, start = CompileClock(), time.perf_counter()
      >>> _ = jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(3))
      >>> 0 < clock.between(start, time.perf_counter()) < time.perf_counter() - start
      True
    """

    def __init__(self) -> None:
        """Start to listen."""
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if not event.startswith("/jax/core/compile"):
            return
        end = time.perf_counter()
        start = end - duration_secs
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((start, end))

    def between(self, start: float, end: float) -> float:
        """Return the seconds of compilation that ended between two readings of ``perf_counter``."""
        total = 0.0
        for first, last in reversed(self._spans):
            if last < start:
                break
            total += min(last, end) - max(first, start)
        return total


@functools.cache
def compile_clock() -> CompileClock:
    """Return the clock of this process, which listens from the first call on.

    Example:
      >>> compile_clock() is compile_clock()
      True
    """
    return CompileClock()


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

    def seconds(self, train: Train, selection: Selection, steps: int, key: Array) -> tuple[Any, float]:
        """Return what a trial returns, and the seconds from its first batch to its end."""
        marks: list[float] = []

        def next_batch(state: Any) -> Any:
            marks.append(time.perf_counter())
            return selection.next_batch(state)

        trained = jax.block_until_ready(train(selection._replace(next_batch=next_batch), steps, key))
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


def _check_question(steps: Any, seconds: Any, select_span: Any) -> None:
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
    pair = isinstance(select_span, (tuple, list)) and len(select_span) == 2
    _checks.require(
        pair
        and all(_is_number(share) for share in select_span)
        and bool(0 <= select_span[0] < select_span[1] <= 1),
        f"select_span is {brief(select_span)} but must be two rising shares of the steps in [0, 1]; "
        "(0.35, 0.5) is usual.",
    )


def _accuracy(value: Any) -> float:
    """Return what ``evaluate`` returned as a number, or refuse it."""
    number = float(value) if _is_number(value) else math.nan
    # A mean in float32 can be above 1 by a rounding error.
    _checks.require(
        0 <= number <= 1 + 1e-5,
        f"evaluate returned {_checks.brief(value)} but must return one accuracy, a number in [0, 1]; "
        "divide percent by 100, and return the accuracy of an Evaluation.",
    )
    return number


def pilot(
    train: Train,
    evaluate: Evaluate,
    apply_fn: ApplyFn,
    source: Source,
    *,
    steps: int,
    config: CrestConfig | None = None,
    select_span: tuple[float, float] = (0.35, 0.5),
    train_crest: Train | None = None,
    loss_fn: LossFn = cross_entropy,
    seconds: float = 120.0,
    key: Array | None = None,
    progress: Callable[[str], None] | None = None,
) -> Pilot:
    """Measure whether CREST should beat class-stratified random batches at equal wall-clock time.

    Trials train from the start with the whole schedule compressed to their steps: stratified batches
    for half, once and twice as many steps as CREST, with several keys. Where the training asked about
    is longer than the trials, the slope is extrapolated by its own fall from one doubling to the next,
    and the gain is taken as it is.

    Args:
      train: trains from scratch; it must hand losses back through ``selection.observe`` if exclusion is
        to be judged. Called with several numbers of steps and keys.
      evaluate: accuracy in [0, 1] on rows that ``source`` does not hold.
      apply_fn: the model.
      source: the training data.
      steps: optimizer steps of the training asked about.
      config: settings of CREST; its ``select_from`` and ``select_until`` are set from ``select_span``.
      select_span: shares of the steps, in [0, 1], between which coresets are selected.
      train_crest: trains with CREST where that takes other settings (a learning rate of its own, say).
      loss_fn: per-example losses.
      seconds: for all trials together, without compilation, roughly.
      key: PRNG key; None takes ``jax.random.key(0)``.
      progress: called with a line of text before each trial.

    Raises:
      ValueError: when ``steps`` is below 16, ``seconds`` is not positive, ``select_span`` does not rise
        within [0, 1] or ``key`` is no PRNG key, before any work; after the first short trial, when
        ``evaluate`` returns anything but one number in [0, 1], or ``train`` other than the steps and
        the pair that it was asked for.

    Example:
      >>> from crest_jax import ArraySource, fit
      >>> x = np.float32(np.random.default_rng(0).normal(size=(640, 2)))
      >>> source = ArraySource(x, (x[:, 0] > 0).astype(int))
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> def loss(w, batch):
      ...     return jnp.mean(cross_entropy(batch.inputs @ w, batch.labels))
      >>> step = jax.jit(lambda w, batch: (w - 0.1 * jax.grad(loss)(w, batch), None))
      >>> def train(selection, steps, key):
      ...     start = jnp.zeros((2, 2))
      ...     return fit(selection, step, start, key=key, steps=steps, view=lambda w: (w, {})), {}
      >>> def evaluate(w, state):
      ...     return float(jnp.mean(jnp.argmax(x @ w, 1) == (x[:, 0] > 0)))
      >>> config = CrestConfig(batch_size=16, subset_size=32, probe_size=32)
      >>> found = pilot(train, evaluate, linear, source, steps=40, config=config, seconds=1.0)
      >>> found.steps <= 40, found.seeds >= 2, found.ratio > 0
      (True, True, True)
    """
    _check_question(steps, seconds, select_span)
    steps, seconds = int(steps), float(seconds)
    config = config if config is not None else CrestConfig()
    key = _checks.default_key(key)
    say = progress or (lambda text: None)
    train_crest = train_crest or train
    clock = _Clock()
    stratified = stratified_batches(source, config.batch_size)

    # How long a step takes, then how long the trials can be: 0.5 + 1 + 2 + about 1.5 units a seed.
    short = min(steps, 64)
    say(f"timing {short} steps")
    trained, _ = clock.seconds(train, stratified, short, key)  # compiles
    _accuracy(evaluate(*trained))
    step_seconds = clock.seconds(train, stratified, short, key)[1] / short
    length = int(np.clip(seconds / (3 * 5 * step_seconds), 16, steps))
    seeds = int(np.clip(seconds / (5 * step_seconds * length), 2, MOST_SEEDS))

    low, high = (round(share * length) for share in select_span)
    own = dataclasses.replace(
        config,
        select_from=low,
        select_until=None if high >= length else max(high, low + 1),
        reference_step=config.reference_step or low,
    )
    chosen = crest(apply_fn, source, own, loss_fn=loss_fn, phase=clock.phase)
    say(f"compiling CREST by a trial of {length} steps")
    train_crest(chosen, length, key)
    clock.phases.clear()
    found: dict[str, list[tuple[float, float]]] = {"half": [], "once": [], "twice": [], "crest": []}
    state: tuple[Params, ModelState] = ({}, {})
    for seed in range(seeds):
        trial_key = jax.random.fold_in(key, seed)
        for name, own_train, selection, number in (
            ("half", train, stratified, max(8, length // 2)),
            ("crest", train_crest, chosen, length),
            ("once", train, stratified, length),
            ("twice", train, stratified, 2 * length),
        ):
            say(f"key {seed + 1} of {seeds}: {name}, {number} steps")
            trained, taken = clock.seconds(own_train, selection, number, trial_key)
            found[name].append((100 * _accuracy(evaluate(*trained)), taken))
            if name == "once":
                state = trained
    points = {name: np.array([accuracy for accuracy, _ in rows]) for name, rows in found.items()}
    spent = {name: float(np.median([taken for _, taken in rows])) for name, rows in found.items()}
    ratio = max(1.0, spent["crest"] / spent["once"])
    gains = points["crest"] - points["once"]
    half, once, twice = (float(points[name].mean()) for name in ("half", "once", "twice"))
    slope = slope_at(half, once, twice, steps / length)
    lead = float(gains.mean()) - slope * math.log2(ratio)
    doublings = points["twice"] - points["once"]
    scale = slope / (twice - once) if twice > once else 0.0
    leads = gains - scale * doublings * math.log2(ratio)
    variance, learned, covered = _state_of(apply_fn, loss_fn, source, config, state, key)
    selecting = seeds * ((own.select_until or length) - low)
    costs = Costs(
        step=spent["once"] / length,
        selection=sum(clock.phases.get("selection", [])) / selecting,
        curvature=float(np.median(clock.phases.get("curvature", [0.0]))),
        check=float(np.median(clock.phases.get("check", [0.0]))),
    )
    return Pilot(
        steps=length,
        target=steps,
        seeds=seeds,
        costs=costs,
        ratio=ratio,
        gain=float(gains.mean()),
        gain_error=_standard_error(gains),
        slope=slope,
        lead=lead,
        lead_error=_standard_error(leads),
        variance=variance,
        learned=learned,
        covered=covered,
        advice=advise(config, costs, variance),
    )


def slope_at(half: float, once: float, twice: float, factor: float) -> float:
    """Return the points that a doubling is worth at ``factor`` times the steps of the trials.

    The value of a doubling falls by the same factor from one doubling to the next (a power law in the
    steps); it neither grows with the steps nor gets negative.

    Args:
      half: accuracy after half the steps of a trial, in percent.
      once: after a trial.
      twice: after twice the steps.
      factor: steps of the training over those of a trial, at least 1.

    Example:
      >>> slope_at(80.0, 84.0, 86.0, 1.0), slope_at(80.0, 84.0, 86.0, 4.0)
      (2.0, 0.5)
    """
    before, after = once - half, max(0.0, twice - once)
    fall = min(1.0, after / before) if before > 0 else 1.0
    return after * fall ** math.log2(max(1.0, factor))


def advise(config: CrestConfig, costs: Costs, variance: dict[int, float]) -> CrestConfig:
    """Return the settings with the r, P and reuse that the measured costs suggest.

    ``r`` is the one that leaves the least variance per second (scoring costs in proportion to ``r``);
    ``P`` and the interval grow until curvature and check take less than a tenth of a region's steps;
    coresets are used twice where scoring one costs more than two steps.

    Example:
      >>> costs = Costs(step=1.0, selection=0.5, curvature=2.0, check=0.4)
      >>> found = advise(CrestConfig(), costs, {256: 0.4, 512: 0.25, 1024: 0.2})
      >>> found.subset_size, found.max_coresets, found.reuse
      (512, 24, 1)
    """
    unit = costs.selection / config.subset_size
    size = min(variance, key=lambda r: variance[r] * (costs.step + unit * r))
    wanted = math.ceil((costs.curvature + costs.check) / (0.1 * costs.step)) if costs.step > 0 else 1
    interval = int(np.clip(wanted, 8, 64))
    return dataclasses.replace(
        config,
        subset_size=size,
        max_coresets=max(interval, config.curvature_coresets),
        max_interval=interval,
        reuse=2 if unit * size > 2 * costs.step else 1,
    )


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _state_of(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    source: Source,
    config: CrestConfig,
    trained: tuple[Params, ModelState],
    key: Array,
) -> tuple[dict[int, float], float, float]:
    """Variance ratio by r, share learned and share covered, at trained parameters, on a pool."""
    partition, m = classes_of(source.labels), config.batch_size
    num_classes, codes = partition.number, partition.codes
    size = min(POOL, len(source))
    rows = next_subset(open_stream(key, num_classes), make_strata(codes, num_classes), size)[1]
    embed_fn = jax.jit(logit_gradients(apply_fn, loss_fn))
    embeddings, losses = embed_rows(embed_fn, *trained, source, np.asarray(rows))
    labels = codes[np.asarray(rows)]
    pool, strata = jnp.asarray(embeddings), make_strata(labels, num_classes)
    classes = jnp.asarray(labels, jnp.int32)
    stream = open_stream(key, num_classes)
    centre = pool.mean(0)

    def spread(count: int, coresets: bool) -> tuple[float, float]:
        nonlocal stream
        squares, shares = [], []
        for _ in range(DRAWS):
            stream, drawn = next_subset(stream, strata, count)
            if not coresets:
                squares.append(float(jnp.sum(jnp.square(pool[drawn].mean(0) - centre))))
                continue
            mean, share = _coreset_mean(pool[drawn], classes[drawn], size=m, num_classes=num_classes)
            squares.append(float(jnp.sum(jnp.square(mean - centre))))
            shares.append(float(share))
        return float(np.mean(squares)), float(np.mean(shares)) if shares else 0.0

    base, _ = spread(m, coresets=False)
    variance, covered = {}, 0.0
    for factor in SUBSETS:
        if factor * m > size:
            break
        left, covered_now = spread(factor * m, coresets=True)
        variance[factor * m] = left / base if base > 0 else 1.0
        covered = covered_now if factor <= SUBSETS[1] else covered
    variance = variance or {config.subset_size: 1.0}
    return variance, float(np.mean(losses < config.exclude_below)), covered


@jax.jit
def _distances(points: Array, picks: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(points[:, None] - points[picks][None]), axis=-1))


def _coreset_mean(points: Array, labels: Array, *, size: int, num_classes: int) -> tuple[Array, Array]:
    """The weighted mean of a coreset, and the share of the spread of the points that it stands for."""
    coreset = medoids(points, labels, size=size, num_classes=num_classes)
    mean = coreset.weights @ points[coreset.indices] / jnp.sum(coreset.weights)
    left = jnp.mean(jnp.min(_distances(points, coreset.indices), axis=1))
    whole = jnp.mean(jnp.linalg.norm(points - points.mean(0)[None], axis=1))
    return mean, 1.0 - left / whole
