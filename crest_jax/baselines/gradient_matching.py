"""GradMatch: a weighted subset whose gradients add up to those of the data."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.baselines.subset import Subset, subset_batches
from crest_jax.coresets.greedy import first_largest
from crest_jax.data.classes import classes_in
from crest_jax.data.quotas import quotas_for
from crest_jax.gradients.chunked import embed_rows
from crest_jax.gradients.embeddings import checked_embedding, last_layer_gradients
from crest_jax.gradients.losses import cross_entropy
from crest_jax.types import (
    Array,
    BatchSelector,
    Factored,
    FeaturesFn,
    LossFn,
    ModelState,
    Params,
    PhaseFn,
    PyTree,
    Source,
    Work,
    untimed,
)

_REFINE = 30  # steps of the weights after each pick, from where they were
_FINISH = 500  # steps of the weights after the last pick


class Matched(NamedTuple):
    """A subset of one or several classes and the weights that were fitted to it.

    Attributes:
      indices: [c, rounds], int32; places beyond a class's quota are 0.
      weights: [c, rounds], float32, at least 0; 0 beyond the quota.
      residuals: [c], float32, |sum of all - weighted sum| / |sum of all|.
    """

    indices: Array
    weights: Array
    residuals: Array


def inner(embeddings: PyTree, direction: Array) -> Array:
    """Return inner products [n] of embeddings with one direction, [d] or [c, d].

    Example:
      >>> gradients = Factored(jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]))
      >>> inner(gradients, jnp.array([[1.0], [1.0]])).tolist()
      [9.0]
    """
    if isinstance(embeddings, Factored):
        left, right = embeddings
        return jnp.sum(jnp.dot(left, direction, precision="highest") * right, axis=1)
    return jnp.dot(embeddings, direction, precision="highest")


def combine(embeddings: PyTree, weights: Array) -> Array:
    """Return the weighted sum of embeddings, [d], or [c, d] for ``Factored``.

    Example:
      >>> combine(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 3.0])).tolist()
      [2.0, 3.0]
    """
    if isinstance(embeddings, Factored):
        left, right = embeddings
        return jnp.dot((left * weights[:, None]).T, right, precision="highest")
    return jnp.dot(weights, embeddings, precision="highest")


def non_negative_weights(gram: Array, products: Array, start: Array, steps: int) -> Array:
    """Minimise ``w' G w / 2 - b' w`` over ``w >= 0`` by accelerated projected gradient.

    Beck and Teboulle (SIAM Journal on Imaging Sciences 2009), from a given start, so that a fit with
    one more column goes on from the last one.

    Args:
      gram: [k, k], symmetric and positive semi-definite.
      products: [k].
      start: [k], at least 0.
      steps: static number of iterations.

    Example:
      >>> non_negative_weights(jnp.eye(2), jnp.array([2.0, -1.0]), jnp.zeros(2), 5).tolist()
      [2.0, 0.0]
    """
    bound = jnp.maximum(jnp.max(jnp.sum(jnp.abs(gram), axis=1)), 1e-30)  # Gershgorin

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weights, ahead, t = state
        moved = jnp.maximum(ahead - (jnp.dot(gram, ahead, precision="highest") - products) / bound, 0.0)
        t_next = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        return moved, moved + (t - 1) / t_next * (moved - weights), t_next

    return jax.lax.fori_loop(0, steps, step, (start, start, jnp.float32(1)))[0]


@partial(jax.jit, static_argnames=("rounds", "block"))
def match_by_class(
    embeddings: PyTree,
    order: Array,
    counts: Array,
    quotas: Array,
    ridge: Array,
    *,
    rounds: int,
    block: int,
) -> Matched:
    """Match the sum of each class's gradients by orthogonal matching pursuit.

    GradMatch (Killamsetty et al., ICML 2021, Algorithm 2): each pick has the largest inner product
    with what is not matched yet; then all weights are fitted again, non-negative and with a ridge.
    One class (all counts in one entry) matches the whole.

    Args:
      embeddings: [n, d] or ``Factored``.
      order: [n], int32, rows sorted by class.
      counts: [c], int32.
      quotas: [c], int32, picks of each class, at most the counts and at most ``rounds``.
      ridge: [], the ridge, relative to the mean squared length of the class's embeddings.
      rounds: static, largest quota.
      block: static, largest count.

    Example:
      >>> points = jnp.array([[2.0, 0.0], [0.0, 1.0], [0.1, 0.1]])
      >>> found = match_by_class(points, jnp.arange(3), jnp.array([3]), jnp.array([2]),
      ...                        jnp.float32(1e-4), rounds=2, block=3)
      >>> found.indices.tolist(), [round(w, 1) for w in found.weights[0].tolist()]
      ([[0, 1]], [1.0, 1.1])
    """
    starts = jnp.cumsum(counts) - counts

    def one(args: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, count, quota = args
        places = jnp.arange(block)
        valid = places < count
        rows = order[jnp.minimum(start + places, order.shape[0] - 1)]
        own = jax.tree.map(lambda x: x[rows].astype(jnp.float32), embeddings)
        target = combine(own, valid.astype(jnp.float32))
        lengths = jnp.where(valid, _squared_lengths(own), 0.0)
        damping = ridge * jnp.sum(lengths) / jnp.maximum(count, 1).astype(jnp.float32)
        products = inner(own, target)

        def pick(t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            free, picks, gram, weights = state
            heads = jax.tree.map(lambda x: x[picks], own)
            left = target - combine(heads, weights)
            scores = jnp.where(free, inner(own, left), -jnp.inf)
            best = first_largest(scores)
            taking = t < quota
            free = free & ~(taking & (places == best))
            picks = picks.at[t].set(jnp.where(taking, best, 0))
            chosen = jnp.arange(rounds) <= t
            heads = jax.tree.map(lambda x: x[picks], own)
            alone = jax.tree.map(lambda x: x[best][None], own)
            row = inner(heads, combine(alone, jnp.ones(1, jnp.float32)))
            row = jnp.where(chosen & taking, row, 0.0)
            gram = gram.at[t, :].set(row).at[:, t].set(row)
            gram = gram.at[t, t].add(jnp.where(taking, damping, 1.0))
            goals = jnp.where(chosen & (jnp.arange(rounds) < quota), products[picks], 0.0)
            return free, picks, gram, non_negative_weights(gram, goals, weights, _REFINE)

        zeros = jnp.zeros(rounds, jnp.float32)
        state = (valid, jnp.zeros(rounds, jnp.int32), jnp.zeros((rounds, rounds), jnp.float32), zeros)
        _, picks, gram, weights = jax.lax.fori_loop(0, rounds, pick, state)
        used = jnp.arange(rounds) < quota
        weights = non_negative_weights(gram, jnp.where(used, products[picks], 0.0), weights, _FINISH)
        weights = jnp.where(used, weights, 0.0)
        heads = jax.tree.map(lambda x: x[picks], own)
        gap = jnp.linalg.norm(target - combine(heads, weights))
        scale = jnp.maximum(jnp.linalg.norm(target), 1e-30)
        return jnp.where(used, rows[picks], 0), weights, gap / scale

    return Matched(*jax.lax.map(one, (starts, counts, quotas)))


def _squared_lengths(embeddings: PyTree) -> Array:
    lengths = [jnp.sum(jnp.square(leaf), axis=1) for leaf in jax.tree.leaves(embeddings)]
    return lengths[0] if len(lengths) == 1 else lengths[0] * lengths[1]


def gradmatch(
    features_fn: FeaturesFn,
    source: Source,
    batch_size: int,
    size: int,
    *,
    every: int,
    per_batch: bool = False,
    ridge: float = 0.01,
    loss_fn: LossFn = cross_entropy,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Train on a weighted subset whose gradients add up to those of the data.

    Orthogonal matching pursuit on last-layer gradients with non-negative, ridge-regularised weights
    (Killamsetty et al., GRAD-MATCH, ICML 2021, Algorithm 2), either in each class (GradMatch) or among
    whole mini-batches, all of whose examples get the batch's weight (GradMatchPB). As in the authors'
    code an example that no weight is left for stands for itself.

    Args:
      features_fn: what the last layer reads, and the logits, in evaluation mode.
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples in the subset; ``per_batch`` takes whole mini-batches, one of them in part.
      every: steps after which it is chosen anew.
      per_batch: match by mini-batches instead of by examples.
      ridge: ridge on the weights, relative to the mean squared length of a gradient.
      loss_fn: per-example losses.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``; also when ``ridge`` is not above 0 and, from ``refresh``, when
        a label has no logit.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.eye(6, dtype=np.float32), np.arange(6) % 2)
      >>> features = lambda params, state, inputs: (inputs, inputs @ params)
      >>> selection = gradmatch(features, source, 2, 4, every=10)
      >>> state = selection.init(jax.random.key(0), jnp.zeros((6, 2)), {})
      >>> len(selection.refresh(state, jnp.zeros((6, 2)), {})[0].strata.members)
      4
    """
    _checks.in_range("ridge", ridge, 0.0, 1e6, open_low=True)
    embed = checked_embedding(last_layer_gradients(features_fn, loss_fn), loss_fn, source)
    groups, count = classes_in(source), len(source)
    everything = np.arange(count)
    counts = np.bincount(groups.codes).astype(np.int32)
    quotas = quotas_for(counts[None], size, "proportional")[0].astype(np.int32)
    order = np.argsort(groups.codes, kind="stable").astype(np.int32)

    def by_class(key: Array, params: Params, model_state: ModelState) -> Subset:
        del key
        gradients = on_device(embed_rows(embed, params, model_state, source, everything)[0])
        found = match_by_class(
            gradients, order, jnp.asarray(counts), jnp.asarray(quotas), jnp.float32(ridge),
            rounds=int(quotas.max()), block=int(counts.max()),
        )  # fmt: skip
        used = np.arange(found.indices.shape[1])[None, :] < quotas[:, None]
        return _stands_for_itself(np.asarray(found.indices)[used], np.asarray(found.weights)[used])

    def by_batch(key: Array, params: Params, model_state: ModelState) -> Subset:
        gradients = on_device(embed_rows(embed, params, model_state, source, everything)[0])
        shuffled = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
        whole = count // batch_size
        means = _batch_sums(gradients, shuffled[: whole * batch_size].reshape(whole, batch_size))
        wanted = min(-(-size // batch_size), whole)
        found = match_by_class(
            means, jnp.arange(whole), jnp.array([whole]), jnp.array([wanted]), jnp.float32(ridge),
            rounds=wanted, block=whole,
        )  # fmt: skip
        groups = np.asarray(shuffled)[: whole * batch_size].reshape(whole, batch_size)
        rows = groups[np.asarray(found.indices[0])].reshape(-1)
        weights = np.repeat(np.asarray(found.weights[0]), batch_size)
        if len(rows) < size:  # fewer rows than asked in whole batches: the next of the shuffle
            rest = np.setdiff1d(np.asarray(shuffled), rows, assume_unique=True)[: size - len(rows)]
            rows, weights = np.append(rows, rest), np.append(weights, np.zeros(len(rest)))
        return _stands_for_itself(rows[:size], weights[:size])

    choose = by_batch if per_batch else by_class
    work = Work(selection_forward=count)
    return subset_batches(source, batch_size, size, choose, every=every, work=work, phase=phase)


def on_device(embeddings: Factored) -> Factored:
    """Return last-layer gradients as arrays on the device."""
    return Factored(jnp.asarray(embeddings.left), jnp.asarray(embeddings.right))


@jax.jit
def _batch_sums(gradients: Factored, groups: Array) -> Array:
    """Sums [g, c d] of the gradients of groups [g, m] of rows."""
    left, right = gradients.left[groups], gradients.right[groups]
    sums = jnp.einsum("gmc,gmd->gcd", left, right, precision="highest")
    return sums.reshape(groups.shape[0], -1)


def _stands_for_itself(rows: np.ndarray, weights: np.ndarray) -> Subset:
    return Subset(rows, np.where(weights > 1e-3 * max(weights.mean(), 1e-30), weights, 1.0))
