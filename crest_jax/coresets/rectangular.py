"""Selection from similarities [n, m] of rows to other things: the columns are what is chosen from."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.by_class import Members, Settings, choose_by_class_compiled
from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.oracles import padded
from crest_jax.coresets.plan import Plan
from crest_jax.types import Array, Coreset


def choose_rectangular(points: Points, *, size: int, metric: Metric, plan: Plan, key: Array) -> Coreset:
    """Choose columns, and count the rows at the chosen column that is most similar to them.

    Args:
      points: one part, similarities [m, n] of candidates to rows.
      size: picks in all.
      metric: "precomputed".
      plan: says which method, with its settings.
      key: PRNG key, for stochastic greedy.

    Returns:
      See ``select_coreset``; the weights sum to ``n``.
    """
    matrix = points.parts[0]
    candidates, rows = matrix.shape
    if plan.method == "dense":
        picks, gains = _choose_dense(matrix, size=size)
        return _counted(matrix, picks, gains)
    wide, high = padded(candidates), padded(rows)
    settings = Settings(size, size, wide, high, metric, plan.capacity, plan.draws)
    quotas = jnp.full(1, size, jnp.int32)
    chosen = choose_by_class_compiled(
        points, _one_class(candidates), None, _one_class(rows), quotas, None, key, settings=settings
    )
    return _counted(matrix, chosen.picks, chosen.gains)


def _one_class(count: int) -> Members:
    return Members(jnp.arange(count, dtype=jnp.int32), jnp.full(1, count, jnp.int32))


@partial(jax.jit, static_argnames="size")
def _choose_dense(matrix: Array, *, size: int) -> tuple[Array, Array]:
    """Look at all gains in every round; picks [size] and gains [size]."""

    def step(turn: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        cover, free, picks, gains = state
        added = jnp.sum(jnp.maximum(matrix - cover[None, :], 0.0), axis=1)
        pick = first_largest(jnp.where(free, added, -1.0))
        return (
            jnp.maximum(cover, matrix[pick]),
            free.at[pick].set(False),
            picks.at[turn].set(pick),
            gains.at[turn].set(added[pick]),
        )

    start = (
        jnp.zeros(matrix.shape[1], jnp.float32),
        jnp.ones(matrix.shape[0], bool),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, jnp.float32),
    )
    return jax.lax.fori_loop(np.int32(0), np.int32(size), step, start)[2:]


@jax.jit
def _counted(matrix: Array, picks: Array, gains: Array) -> Coreset:
    nearest = first_largest(matrix[picks].T)
    weights = jnp.zeros(picks.shape[0], jnp.float32).at[nearest].add(1.0)
    return Coreset(picks, weights, gains, jnp.sum(gains))
