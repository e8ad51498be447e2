"""Weighted subsets whose gradients add up to the data's: the choices of GradMatch and GLISTER.

Embeddings are per-example gradients [n, d], or ``Factored`` ones; outer products are never formed.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crest_jax.embeddings import Factored, logit_residuals
from crest_jax.facility_location import first_largest
from crest_jax.types import Array, PyTree

_REFINE = 30  # steps of the weights after each pick, from where they were
_FINISH = 500  # steps of the weights after the last pick


class Matched(NamedTuple):
    """A subset of one or several classes and the weights that were fitted to it."""

    indices: Array  # [c, rounds], int32; places beyond a class's quota are 0
    weights: Array  # [c, rounds], float32, at least 0; 0 beyond the quota
    residuals: Array  # [c], float32, |sum of all - weighted sum| / |sum of all|


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
        moved = jnp.maximum(ahead - (gram @ ahead - products) / bound, 0.0)
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


@partial(jax.jit, static_argnames="rounds")
def lower_validation_loss(
    gradients: Factored,
    classes: Array,
    quotas: Array,
    features: Array,
    logits: Array,
    labels: Array,
    rate: Array,
    *,
    rounds: int,
) -> Array:
    """Choose the examples whose gradients lower the validation loss, by a first-order greedy choice.

    GLISTER (Killamsetty et al., AAAI 2021, Algorithm 2 and Section 3.3, last-layer approximation): in
    each of ``rounds`` rounds the examples of each class are taken whose gradients agree best with the
    validation gradient, which is then taken anew after a step of size ``rate`` along the mean gradient
    of all that are chosen. The paper has no quotas; without them the first rounds take one class only.

    Args:
      gradients: last-layer gradients of the pool: left [n, c], right [n, d].
      classes: [n], int32.
      quotas: [c], int32, examples to choose of each class, at most the class's size.
      features: [v, d], what the last layer reads for the validation rows, with a last column of ones.
      logits: [v, c], their logits.
      labels: [v], int32.
      rate: [], step size.
      rounds: static.

    Returns:
      [n], bool, the examples chosen; equal agreement goes to the lowest row.

    Example:
      >>> pool = Factored(jnp.array([[0.5, -0.5], [-0.5, 0.5]]), jnp.ones((2, 1)))
      >>> lower_validation_loss(pool, jnp.zeros(2, int), jnp.array([1, 0]), jnp.ones((1, 1)),
      ...                       jnp.zeros((1, 2)), jnp.array([1]), jnp.float32(0.1), rounds=1).tolist()
      [True, False]
    """
    counts = jnp.bincount(classes, length=quotas.shape[0])
    starts = jnp.cumsum(counts) - counts
    places = jnp.arange(classes.shape[0])

    def one(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, total = state
        number = jnp.sum(chosen, dtype=jnp.int32)
        step = rate * total / jnp.maximum(number, 1).astype(jnp.float32)
        moved = logits - jnp.dot(features, step.T, precision="highest")
        validation = jnp.dot(logit_residuals(moved, labels).T, features, precision="highest")
        gains = jnp.where(chosen, -jnp.inf, inner(gradients, validation / labels.shape[0]))
        wanted = quotas * (index + 1) // rounds - quotas * index // rounds
        order = jnp.lexsort((-gains, classes))
        own = classes[order]
        taken = jnp.zeros_like(chosen).at[order].set(places - starts[own] < wanted[own])
        return chosen | taken, total + combine(gradients, taken.astype(jnp.float32))

    total = jnp.zeros((logits.shape[1], features.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, rounds, one, (jnp.zeros(classes.shape[0], bool), total))[0]
