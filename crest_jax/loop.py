"""The training loop and evaluation, built from public pieces only."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.data.chunks import chunk_length
from crest_jax.data.devices import copied, on_accelerator
from crest_jax.data.sources import padded_chunks
from crest_jax.gradients.losses import cross_entropy, label_span, labels_fit, per_example
from crest_jax.types import (
    ApplyFn,
    Array,
    Batch,
    BatchSelector,
    Examples,
    Inside,
    LossFn,
    ModelState,
    Params,
    Source,
)

TrainStep = Callable[[Any, Batch], tuple[Any, Any]]  # (train_state, batch) -> (train_state, metrics)
View = Callable[[Any], tuple[Params, ModelState]]


def view(train_state: Any) -> tuple[Params, ModelState]:
    """Read ``params`` and, where there are any, ``batch_stats`` off a Flax ``TrainState``.

    Raises:
      TypeError: for a state without ``params``.

    Example:
      >>> from types import SimpleNamespace
      >>> view(SimpleNamespace(params=1, batch_stats=2))
      (1, {'batch_stats': 2})
    """
    if not hasattr(train_state, "params"):
        raise TypeError(
            f"train_state is a {type(train_state).__name__} without params; pass view=, a function "
            "train_state -> (params, model_state), such as view=lambda state: (state[0], {})."
        )
    statistics = getattr(train_state, "batch_stats", None)
    return train_state.params, {} if statistics is None else {"batch_stats": statistics}


def fit(
    selection: BatchSelector,
    train_step: TrainStep,
    train_state: Any,
    *,
    key: Array,
    steps: int,
    view: View = view,
    losses: Callable[[Any], Array] | None = None,
    on_event: Callable[[Any], None] | None = None,
    on_step: Callable[[int, Any], None] | None = None,
    scan: int | Literal["auto"] = "auto",
) -> Any:
    """Train for ``steps`` mini-batches; nothing here that your own loop cannot do.

    On a GPU or TPU, jitted steps between two checks of the selection run 2, 4, ... or 32 in one
    program, so that the device does not wait for the host at every step. The numbers are those of
    single steps, up to how XLA orders float32 sums.

    Args:
      selection: how mini-batches are chosen: ``crest(...)``, ``random_batches(...)`` and so on.
      train_step: your jitted step ``(train_state, batch) -> (train_state, metrics)``; its loss is
        ``sum(batch.weights * losses) / sum(batch.weights)``.
      train_state: any pytree.
      key: PRNG key of the selection.
      steps: mini-batches to train on.
      view: ``train_state -> (params, model_state)`` in the form that the model's ``ApplyFn`` takes.
      losses: ``metrics -> losses`` [m] of the mini-batch, which the step computed anyway, for methods
        that exclude what is learned (``crest``, ``dynamic_pruning``); None hands nothing back,
        and only what CREST scores itself can be excluded.
      on_event: called with every event of the selection.
      on_step: called with the step's number, from 0, and its metrics (still on the device); after the
        program that ran the step.
      scan: most steps in one program, for which ``jit`` must be able to trace the step (see
        ``several_steps``); 1 calls it as it is. "auto": 32 where the step comes from ``jax.jit`` and
        the state lies on a GPU or TPU, else 1; on a CPU convolutions in a loop are several times
        slower.

    Returns:
      The trained state.

    Raises:
      ValueError: when ``steps`` or ``scan`` is below 1 or the key is none.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> from crest_jax.baselines.random import random_batches
      >>> source = ArraySource(np.ones((4, 1), np.float32), np.zeros(4, int))
      >>> step = lambda total, batch: (total + batch.inputs.sum(), None)
      >>> read = lambda state: (state, {})
      >>> selection = random_batches(source, 2)
      >>> float(fit(selection, step, 0.0, key=jax.random.key(0), steps=3, view=read))
      6.0
    """
    _checks.positive_int("steps", steps)
    most = most_steps(scan, train_step, train_state)
    state = selection.init(_checks.prng_key("key", key), *view(train_state))
    traced = selection.traced if most > 1 else None
    refresh = selection.refresh if traced is None else traced.refresh
    if traced is not None:
        train_state = copied(train_state)  # each program takes over the memory of the one before
    step = 0
    while step < steps:
        state, event = refresh(state, *view(train_state))
        if event is not None and on_event is not None:
            on_event(event)
        if traced is None:
            state, batch = selection.next_batch(state)
            train_state, metrics = take_step(train_step, train_state, batch)
            if losses is not None:
                state = selection.observe(state, batch, losses(metrics))
            each = [metrics]
        else:
            k = chunk_length(min(traced.quiet(state), steps - step, most))
            state, train_state, metrics = several_steps(
                selection, train_step, state, train_state, k, view=view, losses=losses
            )
            each = [] if on_step is None else [jax.tree.map(itemgetter(i), metrics) for i in range(k)]
            step += k - 1
        if on_step is not None:
            for i, one in enumerate(each, step + 1 - len(each)):
                on_step(i, one)
        step += 1
    return train_state


def take_step(train_step: TrainStep, train_state: Any, batch: Batch) -> tuple[Any, Any]:
    """Call a train step, which must return two things.

    Example:
      >>> take_step(lambda total, batch: total + 1, 0.0, None)
      Traceback (most recent call last):
      ...
      ValueError: train_step returned float but must return two things; return (state, metrics).
    """
    found = train_step(train_state, batch)
    _checks.require(
        isinstance(found, tuple | list) and len(found) == 2,
        f"train_step returned {type(found).__name__} but must return two things; return (state, "
        "metrics).",
    )
    return found[0], found[1]


def several_steps(
    selection: BatchSelector,
    train_step: TrainStep,
    state: Any,
    train_state: Any,
    number: int,
    *,
    view: View = view,
    losses: Callable[[Any], Array] | None = None,
) -> tuple[Any, Any, Any]:
    """Take steps in one program: each mini-batch is chosen, trained on and observed on the device.

    The host calls ``selection.traced.refresh`` before, in place of ``selection.refresh``, and asks
    ``selection.traced.quiet`` for the most steps. ``chunk_length`` keeps the number of programs small.

    Args:
      selection: how mini-batches are chosen, with ``traced``.
      train_step: as of ``fit``; ``jit`` must be able to trace it. Pass the same function at every call.
      state: state of the selection.
      train_state: state of the training, whose memory the program takes over: not used again.
      number: steps, k.
      view: as of ``fit``; the same function at every call.
      losses: as of ``fit``; the same function at every call.

    Returns:
      The state of the selection, that of the training, and what the steps measured, leaves [k, ...].

    Raises:
      ValueError: when mini-batches of the selection need the host.

    Example:
      >>> from crest_jax.baselines.random import random_batches
      >>> from crest_jax.data.sources import ArraySource
      >>> selection = random_batches(ArraySource(np.ones((4, 1), np.float32), np.zeros(4, int)), 2)
      >>> step = lambda total, batch: (total + batch.inputs.sum(), total)
      >>> state = selection.init(jax.random.key(0), None, None)
      >>> given = selection, step, state, jnp.zeros(()), 3
      >>> several_steps(*given, view=lambda state: (state, {}))[2].tolist()
      [0.0, 2.0, 4.0]
    """
    traced = selection.traced
    if traced is None:
        raise ValueError(
            "the selection's traced is None, since its mini-batches need the host, but steps in one "
            "program need it; take single steps, or hold the data in an ArraySource."
        )
    fixed, changing = traced.open(state)
    static = traced.inside, train_step, view, losses
    changing, train_state, metrics = _several_steps(*static, number, fixed, changing, train_state)
    return traced.close(state, changing, number), train_state, metrics


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4), donate_argnames="train_state")
def _several_steps(
    inside: Inside,
    train_step: TrainStep,
    view: View,
    losses: Callable[[Any], Array] | None,
    number: int,
    fixed: Any,
    changing: Any,
    train_state: Any,
) -> tuple[Any, Any, Any]:
    def one(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
        changing, train_state = carry
        changing, batch = inside.next_batch(fixed, changing, *view(train_state))
        train_state, metrics = take_step(train_step, train_state, batch)
        if losses is not None:
            changing = inside.observe(fixed, changing, batch, losses(metrics))
        return (changing, train_state), metrics

    if number == 1:  # on a CPU convolutions in a loop are several times slower
        carry, metrics = one((changing, train_state), None)
        return *carry, jax.tree.map(lambda x: jnp.asarray(x)[None], metrics)
    (changing, train_state), metrics = jax.lax.scan(one, (changing, train_state), None, length=number)
    return changing, train_state, metrics


def most_steps(scan: int | Literal["auto"], train_step: TrainStep, train_state: Any) -> int:
    """Return the most steps of a program; arguments as of ``fit``.

    Example:
      >>> most_steps("auto", lambda state, batch: (state, None), 0.0)
      1
    """
    if scan != "auto":
        _checks.positive_int("scan", scan)
        return scan
    jitted = isinstance(train_step, type(jax.jit(len)))  # others may do what no trace keeps
    return 32 if jitted and on_accelerator(train_state) else 1


def accuracy(logits: Array, labels: Array) -> Array:
    """Return 1 where the highest of the logits [b, c] is that of the label [b], else 0, float32 [b].

    Of sequences and images, logits [b, ..., c], it is the share of the positions.

    Example:
      >>> accuracy(jnp.array([[0.0, 1.0], [2.0, 0.0]]), jnp.array([1, 1])).tolist()
      [1.0, 0.0]
    """
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return jnp.mean(right, axis=tuple(range(1, right.ndim)))


# (logits [b, ...], labels [b, ...]) -> values [b]
MetricFn = Callable[[Any, Any], Array]
Evaluate = Callable[[Params, ModelState, Source], dict[str, float]]


def make_evaluate(
    apply_fn: ApplyFn,
    loss_fn: LossFn = cross_entropy,
    *,
    metrics: Mapping[str, MetricFn] | None = None,
    chunk_size: int = 500,
) -> Evaluate:
    """Return a function that evaluates a model on every row of a source.

    The last chunk is padded and masked, so one compiled program serves all chunks and no row is
    dropped or counted twice.

    Args:
      apply_fn: the model; called in evaluation mode.
      loss_fn: per-example losses.
      metrics: name -> function (logits, labels) -> one number for each example, as
        ``crest_jax.gradients.losses.accuracy``. None: the accuracy where the loss is
        ``cross_entropy``, else none.
      chunk_size: rows per call.

    Returns:
      A function ``(params, model_state, source) -> {"loss": its mean, name: mean of the metric, ...}``.

    Raises:
      ValueError: when ``chunk_size`` is below 1, metrics are no dictionary, one is called
        "loss" or, on the call, when the source is empty, ``loss_fn`` or a metric
        returns not one number for each example, or a label has no logit.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> def constant(params, state, inputs, *, train, rng):
      ...     return jnp.tile(params, (len(inputs), 1)), state
      >>> source = ArraySource(np.zeros((3, 1)), np.array([1, 1, 0]))
      >>> evaluate = make_evaluate(constant, chunk_size=2)
      >>> found = evaluate(jnp.array([0.0, 1.0]), {}, source)
      >>> {name: round(value, 4) for name, value in found.items()}
      {'loss': 0.6466, 'accuracy': 0.6667}
      >>> error = lambda z, y: jnp.abs(z[:, 0] - y)
      >>> evaluate = make_evaluate(constant, error, metrics={"above": lambda z, y: z[:, 0] > y})
      >>> evaluate(jnp.array([1.0]), {}, ArraySource(np.zeros((2, 1)), np.array([0.5, 2.5])))
      {'loss': 1.0, 'above': 0.5}
    """
    _checks.positive_int("chunk_size", chunk_size)
    _checks.apply_function(apply_fn)
    if metrics is None:
        metrics = {"accuracy": accuracy} if loss_fn is cross_entropy else {}
    _checks.require(
        isinstance(metrics, Mapping),
        f"metrics are {_checks.brief(metrics)} but must be a dictionary of functions; pass "
        "{name: function}.",
    )
    _checks.require(
        "loss" not in metrics,
        'metrics hold a metric called "loss", which is what the loss is called; rename it.',
    )
    wanted = dict(metrics)

    def logits_of(params: Params, model_state: ModelState, inputs: Any) -> Any:
        return apply_fn(params, model_state, inputs, train=False, rng=None)[0]

    @jax.jit
    def sums(
        params: Params, model_state: ModelState, examples: Examples, mask: Array
    ) -> dict[str, Array]:
        logits = logits_of(params, model_state, examples.inputs)
        values = {"loss": per_example(loss_fn, logits, examples.labels)}
        for name, metric in wanted.items():
            values[name] = metric(logits, examples.labels)
            _checks.one_each(f"the metric {name!r} returned shape", values[name], len(mask))

        def total(each: Array) -> Array:
            kept = jnp.where(mask, each, 0.0)
            return jnp.sum(kept, dtype=jnp.promote_types(kept.dtype, jnp.float32))

        return {name: total(each) for name, each in values.items()}

    def evaluate(params: Params, model_state: ModelState, source: Source) -> dict[str, float]:
        count = _checks.rows_in(source)
        _checks.require(
            count > 0, "the source holds 0 examples but must hold at least one; pass data to evaluate."
        )
        parts = [
            sums(params, model_state, source.take(jnp.asarray(positions)), jnp.asarray(mask))
            for positions, mask in padded_chunks(count, chunk_size)
        ]
        names, parts = ["loss", *wanted], jax.device_get(parts)  # the host waits once
        totals = np.asarray([[part[name] for name in names] for part in parts], np.float64).sum(axis=0)
        span = label_span(getattr(source, "labels", None)) if loss_fn is cross_entropy else None
        if span is not None and math.isnan(totals[0]):
            inputs = source.take(jnp.zeros(1, jnp.int32)).inputs
            labels_fit(span, jax.eval_shape(logits_of, params, model_state, inputs).shape[-1])
        return dict(zip(names, (totals / count).tolist(), strict=True))

    return evaluate
