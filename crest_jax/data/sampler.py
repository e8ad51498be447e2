"""Random rows, stratified by class: every row once in each pass, in an order that is never stored."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.data.permutation import mix, scramble, unscramble
from crest_jax.data.quotas import quota_edges
from crest_jax.data.strata import Strata
from crest_jax.types import Array


class RowStream(NamedTuple):
    """Where a walk through the rows of each class has come to.

    The order of a pass is a pseudo-random permutation that is computed where it is needed and never
    stored, so a draw costs time in its own size only, however many rows there are.

    Attributes:
      seed: [2], uint32: of the orders, and of the rounding of quotas.
      draws: [c], uint32: draws made, the same in all classes, so that one kernel of a GPU counts all.
      cursors: [c], int32: places that this pass has gone through.
      passes: [c], int32: passes that have ended.
      later: [c], int32: rows in play that this pass has come to before ``cursors`` began.
      missed: [c], int32: rows out of play that it has gone by.
    """

    seed: Array
    draws: Array
    cursors: Array
    passes: Array
    later: Array
    missed: Array


class InPlay(NamedTuple):
    """The rows that are drawn from.

    Attributes:
      order: [k], int32: rows sorted by class; of each class first those in play, of these and of the
        others first the ones that the pass has yet to come to.
      sizes: [c], int32: rows in play of each class.
      ends: [c], int32: their running sums.
    """

    order: Array
    sizes: Array
    ends: Array


def open_stream(key: Array, num_classes: int) -> RowStream:
    """Return a stream at the beginning of its first pass.

    Raises:
      ValueError: when the key is none.

    Example:
      >>> open_stream(jax.random.key(0), 3).cursors.tolist()
      [0, 0, 0]
    """
    seed = jax.random.bits(_checks.prng_key("key", key), (2,), jnp.uint32)
    # Each an array of its own: a state may be donated.
    none = (jnp.zeros(num_classes, jnp.int32) for _ in range(4))
    return RowStream(seed, jnp.zeros(num_classes, jnp.uint32), *none)


def new_pass(stream: RowStream) -> RowStream:
    """Begin a new pass in every class.

    Example:
      >>> new_pass(open_stream(jax.random.key(0), 2)).passes.tolist()
      [1, 1]
    """
    return _begun(stream, jnp.ones_like(stream.passes, bool))


def _begun(stream: RowStream, over: Array) -> RowStream:
    """Begin a new pass in the classes, [c] bool, whose pass is over."""
    seed, draws, cursors, passes, later, missed = stream
    rest = (jnp.where(over, 0, x) for x in (later, missed))
    return RowStream(seed, draws, jnp.where(over, 0, cursors), passes + over.astype(jnp.int32), *rest)


def all_in_play(strata: Strata) -> InPlay:
    """Return all rows, in arrays of their own.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.strata import make_strata
      >>> all_in_play(make_strata(np.array([1, 0, 1]), 2)).sizes.tolist()
      [1, 2]
    """
    ends = strata.starts + strata.sizes
    return InPlay(jnp.copy(strata.members), jnp.copy(strata.sizes), ends)


def next_subset(
    stream: RowStream, strata: Strata, size: int, in_play: InPlay | None = None
) -> tuple[RowStream, Array]:
    """Draw rows [size], grouped by class, each class in proportion to its rows in play.

    No row comes twice in one draw, and none comes again in a pass, but for the rows that fill the draw
    with which a class ends its pass. A pass goes on where rows leave play and return (``rearranged``).

    Args:
      stream: where the walk has come to.
      strata: the rows.
      size: rows to draw, at most those in play.
      in_play: None: all rows.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.strata import make_strata
      >>> strata = make_strata(np.arange(8) % 2, 2)
      >>> stream = open_stream(jax.random.key(0), 2)
      >>> stream, first = next_subset(stream, strata, 4)
      >>> sorted(first.tolist() + next_subset(stream, strata, 4)[1].tolist())
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return _draw(stream, strata, in_play, size)


@partial(jax.jit, static_argnames="size")
def _draw(
    stream: RowStream, strata: Strata, in_play: InPlay | None, size: int
) -> tuple[RowStream, Array]:
    # No sum along classes or rows, no loop, no scatter: three kernels on a GPU.
    order, sizes, ends = in_play or (strata.members, strata.sizes, strata.starts + strata.sizes)
    bits = mix(stream.seed[0] ^ mix(stream.seed[1] ^ stream.draws[0]))
    firsts, edges = quota_edges(bits, ends - sizes, ends, size, most=order.shape[0])
    lanes = jnp.arange(size, dtype=jnp.int32)
    group = jnp.sum(lanes[:, None] >= edges[None, :], axis=1, dtype=jnp.int32)
    later, own = stream.later[group], sizes[group]
    ahead = own - later
    places = (stream.cursors[group] + lanes - firsts[group]) % own
    # A class that comes to the end of its pass in this draw fills it with rows that came before.
    begin = jnp.where(places < ahead, 0, ahead)
    span = jnp.where(places < ahead, ahead, later)
    seeds = _class_seeds(stream.seed, group, stream.passes[group])
    rows = order[strata.starts[group] + begin + scramble(places - begin, span, seeds)]
    cursors = stream.cursors + edges - firsts
    over = (cursors >= sizes - stream.later) & (sizes > 0)
    return _begun(stream._replace(draws=stream.draws + 1, cursors=cursors), over), rows


def rearranged(
    stream: RowStream, strata: Strata, in_play: InPlay, out: Array, keep: float
) -> tuple[RowStream, InPlay]:
    """Take rows out of play, and others in; each class goes on with its pass.

    A pass comes to every row once, also to those that are out: it goes by them, the same share of them
    as of the others. What it has come to or gone by does not come again before the next pass. So no row
    comes too often or too rarely, whenever in a pass it leaves and returns.

    A share of the rows that are out stays in play all the same, others at every call. Of rows too few
    for the share, chance rounds their number, so that none is always left out.

    Args:
      stream: where the walk has come to.
      strata: the rows.
      in_play: the rows that were drawn from.
      out: [n], bool, of all rows of the data set.
      keep: static, that share.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data.strata import make_strata
      >>> strata, stream = make_strata(np.zeros(4, int), 1), open_stream(jax.random.key(0), 1)
      >>> out = jnp.array([False, True, False, False])
      >>> stream, some = rearranged(stream, strata, all_in_play(strata), out, 0.0)
      >>> sorted(next_subset(stream, strata, 3, some)[1].tolist())
      [0, 2, 3]
    """
    rows, sizes, all_sizes = in_play.order, in_play.sizes, strata.sizes
    number = jnp.arange(sizes.shape[0], dtype=jnp.int32)
    group = strata.classes[rows].astype(jnp.int32)
    own = jnp.arange(rows.shape[0], dtype=jnp.int32) - strata.starts[group]
    seed = mix(stream.seed + mix(stream.draws[0] + jnp.arange(2, dtype=jnp.uint32)))
    # Each class holds first rows in play, then those out, and of either first those to come.
    away = own >= sizes[group]
    ahead, waiting = sizes - stream.later, all_sizes - sizes - stream.missed
    through = stream.cursors.astype(jnp.float32) / jnp.maximum(ahead, 1).astype(jnp.float32)
    gone_by = _rounded(waiting, through, seed, number)
    spans, until = jnp.concatenate([ahead, waiting]), jnp.concatenate([stream.cursors, gone_by])
    seeds = [_class_seeds(x, number, stream.passes) for x in (stream.seed, seed)]
    part, own = jnp.where(away, group + number.shape[0], group), own - jnp.where(away, sizes[group], 0)
    places = jnp.clip(own, 0, spans[part] - 1)
    turns = unscramble(places, part, spans, jnp.concatenate(seeds))
    came = (own >= spans[part]) | (turns < until[part])
    plays = ~out[rows]
    if keep > 0:
        places, left = _ranked(strata, group, ~plays)
        order = unscramble(places, group, left, _class_seeds(seed[::-1], number, stream.passes))
        plays |= order < _rounded(left, keep, seed[::-1], number)[group]
    counts: list[Array] = []
    found, begin = jnp.zeros_like(rows), strata.starts
    for kind in (plays & ~came, plays & came, ~plays & ~came, ~plays & came):
        places, of_kind = _ranked(strata, group, kind)
        found = jnp.where(kind, begin[group] + places, found)
        begin = begin + of_kind
        counts.append(of_kind)
    order = jnp.zeros_like(rows).at[found].set(rows, unique_indices=True)
    sizes = counts[0] + counts[1]
    cursors = jnp.zeros_like(stream.cursors)
    stream = RowStream(seed, stream.draws + 1, cursors, stream.passes, counts[1], counts[3])
    stream = _begun(stream, (counts[0] == 0) & (sizes > 0))
    return stream, InPlay(order, sizes, jnp.cumsum(sizes, dtype=jnp.int32))


def _rounded(counts: Array, share: Array | float, seed: Array, classes: Array) -> Array:
    """Return a share of counts [c], rounded up or down by chance, so that it is right on average."""
    bits = _class_seeds(seed, classes, jnp.full_like(classes, -1)) >> 8
    chance = bits.astype(jnp.float32) / jnp.float32(2**24)
    return jnp.floor(counts.astype(jnp.float32) * share + chance).astype(jnp.int32)


def _ranked(strata: Strata, group: Array, kind: Array) -> tuple[Array, Array]:
    """Return the place [k] of each row among those of its class and kind, and their number [c].

    Elsewhere than at rows of the kind, [k] bool, the place is that of the one before.
    """
    running = jnp.cumsum(kind, dtype=jnp.int32)
    through = jnp.concatenate([jnp.zeros(1, jnp.int32), running])
    before = through[strata.starts]
    return running - 1 - before[group], through[strata.starts + strata.sizes] - before


def _class_seeds(seed: Array, classes: Array, passes: Array) -> Array:
    """Return a seed [k] for the order of each of some classes [k] in the passes [k]."""
    mixed = mix(seed[0] + mix(seed[1] + classes.astype(jnp.uint32)))
    return mix(mixed + passes.astype(jnp.uint32))
