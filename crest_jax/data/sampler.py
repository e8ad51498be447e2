"""Random rows, stratified by class: every row once in each pass, in an order that is never stored."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.data.permutation import mix, scramble
from crest_jax.data.quotas import stratified_quotas
from crest_jax.data.strata import Strata
from crest_jax.types import Array


class RowStream(NamedTuple):
    """Where a walk through the rows of each class has come to.

    The order of a pass is a pseudo-random permutation that is computed where it is needed and never
    stored, so a draw costs time in its own size only, however many rows there are, and rows that leave
    or return do so at once.

    Attributes:
      key: of the rounding of the quotas.
      seed: [2], uint32: of the orders.
      cursors: [c], int32: places that this pass has gone through.
      passes: [c], int32: passes that have ended.
    """

    key: Array
    seed: Array
    cursors: Array
    passes: Array


class Inactive(NamedTuple):
    """The examples that are excluded from the draws.

    Attributes:
      left_at: [n], int8: above 0 where an example is excluded.
      counts: [c], int32: excluded examples of each class.
    """

    left_at: Array
    counts: Array


def open_stream(key: Array, num_classes: int) -> RowStream:
    """Return a stream at the beginning of its first pass.

    Raises:
      ValueError: when the key is none.

    Example:
      >>> open_stream(jax.random.key(0), 3).cursors.tolist()
      [0, 0, 0]
    """
    key, seed_key = jax.random.split(_checks.prng_key("key", key))
    seed = jax.random.bits(seed_key, (2,), jnp.uint32)
    # Two arrays, not one twice: a state may be donated.
    cursors, passes = jnp.zeros(num_classes, jnp.int32), jnp.zeros(num_classes, jnp.int32)
    return RowStream(key, seed, cursors, passes)


def new_pass(stream: RowStream) -> RowStream:
    """Begin a new pass in every class.

    Example:
      >>> new_pass(open_stream(jax.random.key(0), 2)).passes.tolist()
      [1, 1]
    """
    return stream._replace(cursors=jnp.zeros_like(stream.cursors), passes=stream.passes + 1)


def next_subset(
    stream: RowStream, strata: Strata, size: int, out: Inactive | None = None, keep: float = 0.0
) -> tuple[RowStream, Array]:
    """Draw rows [size], grouped by class, each class in proportion to its active rows.

    No row comes twice in one draw, and none comes again in a pass, but for the rows that fill the draw
    with which a class ends its pass.

    Args:
      stream: where the walk has come to.
      strata: the rows.
      size: rows to draw, at most the active ones.
      out: the excluded rows; None: there are none.
      keep: static, share of the excluded rows that are drawn all the same, others in every pass.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.strata import make_strata
      >>> strata = make_strata(np.arange(8) % 2, 2)
      >>> stream = open_stream(jax.random.key(0), 2)
      >>> stream, first = next_subset(stream, strata, 4)
      >>> sorted(first.tolist() + next_subset(stream, strata, 4)[1].tolist())
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    left_at, counts = (None, None) if out is None else out
    return _draw(stream, strata, left_at, counts, size, keep)


def drawn_from(sizes: Array, out: Array, keep: float) -> Array:
    """Return the examples of each class [c] that take part in draws.

    Args:
      sizes: [c], int32, examples of each class.
      out: [c], int32, excluded ones.
      keep: share of these that is drawn all the same.

    Example:
      >>> drawn_from(jnp.array([9, 5]), jnp.array([4, 0]), 0.25).tolist()
      [6, 5]
    """
    return sizes - out + jnp.round(keep * out.astype(jnp.float32)).astype(jnp.int32)


@partial(jax.jit, static_argnames=("size", "keep"))
def _draw(
    stream: RowStream, strata: Strata, rest: Array | None, out: Array | None, size: int, keep: float
) -> tuple[RowStream, Array]:
    key, quota_key = jax.random.split(stream.key)
    sizes = strata.sizes
    active = sizes
    if out is not None:
        active = drawn_from(sizes, out, keep)
    quotas = stratified_quotas(quota_key, active, size, most=strata.members.shape[0])
    seeds = _class_seeds(stream)
    if rest is None:
        group, turn = _lanes(quotas, size)
        places = (stream.cursors[group] + turn) % sizes[group]
        rows = _rows_at(strata, group, places, seeds)
        walked = quotas
    else:
        rows, walked = _walk(stream, strata, rest, quotas, seeds, size, keep)
    cursors = stream.cursors + walked
    over = (cursors >= sizes) & (sizes > 0)
    passes = stream.passes + over.astype(jnp.int32)
    return RowStream(key, stream.seed, jnp.where(over, 0, cursors), passes), rows


def _lanes(counts: Array, total: int) -> tuple[Array, Array]:
    """Return the class [total] of each of ``counts[c]`` lanes, class by class, and its turn there."""
    ends = jnp.cumsum(counts)
    lanes = jnp.arange(total, dtype=jnp.int32)
    group = jnp.searchsorted(ends, lanes, side="right", method="compare_all").astype(jnp.int32)
    return group, lanes - (ends - counts)[group]


def _rows_at(strata: Strata, group: Array, places: Array, seeds: Array) -> Array:
    """Return the rows [b] at places [b] of the orders of their classes ``group`` [b]."""
    scattered = scramble(places, strata.sizes[group], seeds[group])
    return strata.members[strata.starts[group] + scattered]


def _walk(
    stream: RowStream,
    strata: Strata,
    rest: Array,
    quotas: Array,
    seeds: Array,
    size: int,
    keep: float,
) -> tuple[Array, Array]:
    """Walk on until every class has given its quota of active rows; return rows and places walked.

    Twice as many places are looked at in a turn as rows are wanted. A class that has too few rows in
    play gives others in a second round, so that no row comes twice and the walk ends.
    """
    sizes = strata.sizes
    group, turn = _lanes(2 * quotas, 2 * size)
    firsts = jnp.cumsum(quotas) - quotas
    limit = jnp.uint32(min(round(keep * 2**32), 2**32 - 1))

    def look(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rows, found, walked = state
        gone = walked[group] + turn
        candidates = _rows_at(strata, group, (stream.cursors[group] + gone) % sizes[group], seeds)
        fits = rest[candidates] <= 0
        if keep > 0:
            fits |= mix(candidates.astype(jnp.uint32) ^ mix(seeds[group] + 1)) < limit
        fits = fits == (gone < sizes[group])  # in the second round the others
        wanted = (quotas - found)[group]
        ones = fits.astype(jnp.int32)
        before = jnp.cumsum(ones) - ones
        rank = before - before[2 * firsts[group]]
        taken = fits & (rank < wanted)
        slots = jnp.where(taken, (firsts + found)[group] + rank, size)
        rows = rows.at[slots].set(candidates, mode="drop")
        more = jnp.zeros_like(found).at[group].add(taken.astype(jnp.int32))
        last = jnp.zeros_like(found).at[group].max(jnp.where(taken, turn + 1, 0))
        full = found + more >= quotas
        step = jnp.where(full, last, 2 * quotas)
        return rows, found + more, walked + step

    zeros = jnp.zeros_like(quotas)
    start = jnp.zeros(size, jnp.int32), zeros, zeros
    rows, _, walked = jax.lax.while_loop(lambda state: jnp.any(state[1] < quotas), look, start)
    return rows, walked


def _class_seeds(stream: RowStream) -> Array:
    """Return a seed [c] for the order of each class in its present pass."""
    classes = jnp.arange(stream.passes.shape[0], dtype=jnp.uint32)
    mixed = mix(stream.seed[0] + mix(stream.seed[1] + classes))
    return mix(mixed + stream.passes.astype(jnp.uint32))
