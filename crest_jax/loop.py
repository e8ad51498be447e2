"""The training loop and evaluation, built from public pieces only."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.data.sources import padded_chunks
from crest_jax.gradients.losses import cross_entropy, labels_fit, per_example
from crest_jax.types import (
    ApplyFn,
    Array,
    Batch,
    BatchSelector,
    Examples,
    LossFn,
    ModelState,
    Params,
    Source,
)

TrainStep = Callable[[Any, Batch], tuple[Any, Any]]  # (train_state, batch) -> (train_state, metrics)
View = Callable[[Any], tuple[Params, ModelState]]


def view(train_state: Any) -> tuple[Params, ModelState]:
    """Read ``params`` and, where there are any, ``batch_stats`` off a Flax ``TrainState``.

    Example:
      >>> from types import SimpleNamespace
      >>> view(SimpleNamespace(params=1, batch_stats=2))
      (1, {'batch_stats': 2})
    """
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
) -> Any:
    """Train for ``steps`` mini-batches; nothing here that your own loop cannot do.

    Args:
      selection: how mini-batches are chosen: ``crest(...)``, ``random_batches(...)`` and so on.
      train_step: your jitted step ``(train_state, batch) -> (train_state, metrics)``; its loss is
        ``sum(batch.weights * losses) / sum(batch.weights)``.
      train_state: any pytree.
      key: PRNG key of the selection.
      steps: mini-batches to train on.
      view: ``train_state -> (params, model_state)`` in the form that the model's ``ApplyFn`` takes.
      losses: ``metrics -> losses`` [m] of the mini-batch, which the step computed anyway, for methods
        that learn from them (``dynamic_pruning``); None hands nothing back.
      on_event: called with every event of the selection.
      on_step: called with the step's number, from 0, and its metrics (still on the device).

    Returns:
      The trained state.

    Raises:
      ValueError: when ``steps`` is below 1 or the key is none.

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
    state = selection.init(_checks.prng_key("key", key), *view(train_state))
    for step in range(steps):
        state, event = selection.refresh(state, *view(train_state))
        if event is not None and on_event is not None:
            on_event(event)
        state, batch = selection.next_batch(state)
        train_state, metrics = train_step(train_state, batch)
        if losses is not None:
            state = selection.observe(state, batch, losses(metrics))
        if on_step is not None:
            on_step(step, metrics)
    return train_state


class Evaluation(NamedTuple):
    """Means over every example of a data set.

    Attributes:
      loss: mean loss.
      accuracy: share of right predictions, in [0, 1].
    """

    loss: float
    accuracy: float


def make_evaluate(
    apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy, *, chunk_size: int = 500
) -> Callable[[Params, ModelState, Source], Evaluation]:
    """Return a function that evaluates a model on every row of a source.

    The last chunk is padded and masked, so one compiled program serves all chunks and no row is
    dropped or counted twice.

    Args:
      apply_fn: the model; called in evaluation mode.
      loss_fn: per-example losses.
      chunk_size: rows per call.

    Raises:
      ValueError: when ``chunk_size`` is below 1 or, on the call, when the source is empty, ``loss_fn``
        returns not one loss for each example, or a label has no logit.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> def constant(params, state, inputs, *, train, rng):
      ...     return jnp.tile(params, (len(inputs), 1)), state
      >>> source = ArraySource(np.zeros((3, 1)), np.array([1, 1, 0]))
      >>> evaluate = make_evaluate(constant, chunk_size=2)
      >>> round(evaluate(jnp.array([0.0, 1.0]), {}, source).accuracy, 4)
      0.6667
    """
    _checks.positive_int("chunk_size", chunk_size)

    def logits_of(params: Params, model_state: ModelState, inputs: Array) -> Array:
        return apply_fn(params, model_state, inputs, train=False, rng=None)[0]

    @jax.jit
    def sums(
        params: Params, model_state: ModelState, examples: Examples, mask: Array
    ) -> tuple[Array, Array]:
        logits = logits_of(params, model_state, examples.inputs)
        losses = per_example(loss_fn, logits, examples.labels)
        correct = jnp.argmax(logits, axis=1) == examples.labels
        return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(correct & mask)

    def evaluate(params: Params, model_state: ModelState, source: Source) -> Evaluation:
        count = len(source)
        _checks.require(
            count > 0, "the source holds 0 examples but must hold at least one; pass data to evaluate."
        )
        parts = [
            sums(params, model_state, source.take(jnp.asarray(positions)), jnp.asarray(mask))
            for positions, mask in padded_chunks(count, chunk_size)
        ]
        loss, correct = np.asarray(parts, np.float64).sum(axis=0).tolist()
        if loss_fn is cross_entropy and math.isnan(loss):
            inputs = source.take(jnp.zeros(1, jnp.int32)).inputs
            logits = jax.eval_shape(logits_of, params, model_state, inputs)
            labels_fit(int(np.max(source.labels)), logits.shape[1])
        return Evaluation(loss / count, correct / count)

    return evaluate
