"""Pruning by a score that is taken once: EL2N and forgetting events."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from crest_jax import _checks
from crest_jax.baselines.subset import Subset, subset_batches
from crest_jax.data.classes import classes_in
from crest_jax.data.quotas import quotas_for
from crest_jax.gradients.chunked import embed_rows
from crest_jax.gradients.embeddings import checked_embedding, logit_gradients
from crest_jax.gradients.losses import cross_entropy
from crest_jax.types import (
    ApplyFn,
    Array,
    BatchSelector,
    ModelState,
    Params,
    PhaseFn,
    Source,
    Work,
    untimed,
)

# (key, params, model_state) -> scores [n]
ScoreFn = Callable[[Array, Params, ModelState], np.ndarray]


def score_pruning(
    source: Source,
    batch_size: int,
    size: int,
    scores: np.ndarray | ScoreFn,
    *,
    work: Work | None = None,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Train on the examples with the highest scores, each class in proportion.

    With ``el2n_scores`` or ``forgetting_scores`` this is the pruning of Paul, Ganguli and Dziugaite
    (NeurIPS 2021) and of Toneva et al. (ICLR 2019). Equal scores go to the lowest row.

    Args:
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples to keep.
      scores: [n], or a function ``(key, params, model_state) -> scores`` called before the first step.
      work: examples that the function passes through models.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``; also when there is not one score for each example or one is
        NaN.

    Example:
      >>> import jax
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.eye(4), np.array([0, 0, 1, 1]))
      >>> selection = score_pruning(source, 2, 2, np.array([1.0, 2.0, 4.0, 3.0]))
      >>> state, _ = selection.refresh(selection.init(jax.random.key(0), None, None), None, None)
      >>> sorted(state.strata.members.tolist())
      [1, 2]
    """
    groups = classes_in(source)
    counts = np.bincount(groups.codes, minlength=groups.number)

    def checked(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        _checks.require(
            values.shape == (len(source),) and not np.isnan(values).any(),
            f"scores have shape {values.shape} and {int(np.isnan(values).sum())} are NaN but there "
            f"must be one number for each of {len(source)} examples; score every example.",
        )
        return values

    if not callable(scores):
        scores = checked(scores)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        values = checked(scores(key, params, model_state)) if callable(scores) else scores
        quotas = quotas_for(counts[None], size, "proportional")[0]
        order = np.lexsort((-values, groups.codes))
        own = groups.codes[order]
        rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[own]
        return Subset(order[rank < quotas[own]], np.ones(size))

    return subset_batches(source, batch_size, size, choose, work=work, phase=phase)


def el2n_scores(
    apply_fn: ApplyFn, params: Params, model_state: ModelState, source: Source
) -> np.ndarray:
    """Return the error norms ``|softmax(z) - onehot(y)|`` [n] of all examples.

    Paul, Ganguli and Dziugaite (NeurIPS 2021, Section 2); they average over networks early in training.

    Args:
      apply_fn: the model; called in evaluation mode.
      params: model parameters.
      model_state: model state.
      source: the data.

    Raises:
      ValueError: when a label has no logit.
      FloatingPointError: when a loss is NaN or infinite.

    Example:
      >>> import jax.numpy as jnp
      >>> from crest_jax.data.sources import ArraySource
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> source = ArraySource(np.eye(2, dtype=np.float32), np.arange(2))
      >>> [round(x, 4) for x in el2n_scores(linear, jnp.zeros((2, 2)), {}, source).tolist()]
      [0.7071, 0.7071]
    """
    embed = checked_embedding(logit_gradients(apply_fn), cross_entropy, source)
    residuals, _ = embed_rows(embed, params, model_state, source, np.arange(len(source)))
    return np.linalg.norm(residuals, axis=1)


class Forgetting(NamedTuple):
    """What is known of each example's predictions over a run.

    Attributes:
      right: [n], bool, whether it was classified correctly when last seen.
      ever: [n], bool, whether it ever was.
      events: [n], int32, times it went from correct to wrong.
    """

    right: np.ndarray
    ever: np.ndarray
    events: np.ndarray


def init_forgetting(count: int) -> Forgetting:
    """Return the state for ``count`` examples, none seen.

    Example:
      >>> init_forgetting(2).events.tolist()
      [0, 0]
    """
    return Forgetting(np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.int32))


def observe_predictions(state: Forgetting, rows: np.ndarray, right: np.ndarray) -> Forgetting:
    """Record whether the examples at ``rows`` [b], all different, are classified correctly [b].

    Example:
      >>> state = observe_predictions(init_forgetting(2), np.array([0, 1]), np.array([True, False]))
      >>> observe_predictions(state, np.array([0]), np.array([False])).events.tolist()
      [1, 0]
    """
    was, ever, events = state.right.copy(), state.ever.copy(), state.events.copy()
    events[rows] += was[rows] & ~right
    was[rows] = right
    ever[rows] |= right
    return Forgetting(was, ever, events)


def forgetting_scores(state: Forgetting) -> np.ndarray:
    """Return the forgetting events [n] of each example, infinite where it was never learned.

    Toneva et al. (ICLR 2019, Section 3).

    Example:
      >>> forgetting_scores(init_forgetting(1)).tolist()
      [inf]
    """
    return np.where(state.ever, state.events, np.inf)
