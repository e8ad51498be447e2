"""Lists of the clients that a candidate can still improve, for lazy greedy to read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crest_jax.coresets.oracles import Oracle
from crest_jax.coresets.run import Run
from crest_jax.types import Array

WINDOW = 128  # entries of a list read at once
EXTRACT = 1024  # entries written at once
BUILD_ROWS = 64  # candidates whose lists are built at once


class Lists(NamedTuple):
    """For each candidate the clients that it may still improve.

    Attributes:
      clients: [capacity + EXTRACT], int32.
      values: [capacity + EXTRACT], float32, exact dissimilarities.
      starts: [m], int32.
      lengths: [m], int32.
    """

    clients: Array
    values: Array
    starts: Array
    lengths: Array


def window(lists: Lists, rows: Array, first: Array) -> tuple[Array, Array, Array]:
    """Clients, values and whether they are entries, [b, WINDOW], from entry ``first`` on."""
    offsets = first + jnp.arange(WINDOW, dtype=jnp.int32)
    places = lists.starts[rows][:, None] + offsets[None, :]
    live = offsets[None, :] < lists.lengths[rows][:, None]
    places = jnp.minimum(places, lists.clients.shape[0] - 1)
    return lists.clients[places], lists.values[places], live


def build(oracle: Oracle, run: Run, capacity: int) -> tuple[Array, Lists]:
    """Find, for every candidate, the clients that it may improve.

    A block of candidates is compared with all clients at once; the outcome is packed into words of 32
    bits, counted, and unpacked into the lists by looking up the word and the bit of each entry.

    Returns:
      The number of entries (above ``capacity`` when they did not fit) and the lists.
    """
    total = run.bounds.shape[0]
    words = -(-oracle.num_clients // oracle.tile) * (oracle.tile // 32)
    in_tile = oracle.tile // 32

    def block(state: tuple[Array, Array, Lists]) -> tuple[Array, Array, Lists]:
        index, used, lists = state
        rows = index * BUILD_ROWS + jnp.arange(BUILD_ROWS, dtype=jnp.int32)
        packed = oracle.closer(rows, run.cover)
        packed = jnp.where((run.bounds[rows] >= 0)[:, None], packed, 0)
        ends = _running_sum(jax.lax.population_count(packed).astype(jnp.int32).reshape(-1))
        packed = packed.reshape(-1)
        count = ends[-1]
        row_ends = ends.reshape(BUILD_ROWS, words)[:, -1]
        lengths = jnp.diff(row_ends, prepend=0)
        lists = lists._replace(
            starts=jax.lax.dynamic_update_slice(lists.starts, used + row_ends - lengths, (rows[0],)),
            lengths=jax.lax.dynamic_update_slice(lists.lengths, lengths, (rows[0],)),
        )

        def extract(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            first, clients, values = state
            entry = first + jnp.arange(EXTRACT, dtype=jnp.int32)
            word = jnp.searchsorted(ends, entry, side="right").astype(jnp.int32)
            word = jnp.minimum(word, packed.shape[0] - 1)
            bits = packed[word]
            rank = entry - (ends[word] - jax.lax.population_count(bits).astype(jnp.int32))
            tile, place = (word % words) // in_tile, word % in_tile
            client = tile * oracle.tile + _bit_of_rank(bits, rank) * in_tile + place
            client = jnp.minimum(client, oracle.num_clients - 1)
            value = oracle.pairs(rows[0] + word // words, client)
            at = (used + first,)
            return (
                first + EXTRACT,
                jax.lax.dynamic_update_slice(clients, client, at),
                jax.lax.dynamic_update_slice(values, value, at),
            )

        fits = used + count <= capacity
        _, clients, values = jax.lax.while_loop(
            lambda s: fits & (s[0] < count), extract, (jnp.int32(0), lists.clients, lists.values)
        )
        return index + 1, used + count, lists._replace(clients=clients, values=values)

    empty = Lists(
        clients=jnp.zeros(capacity + EXTRACT, jnp.int32),
        values=jnp.zeros(capacity + EXTRACT, jnp.float32),
        starts=jnp.zeros(total, jnp.int32),
        lengths=jnp.zeros(total, jnp.int32),
    )
    _, used, lists = jax.lax.while_loop(
        lambda s: (s[0] < total // BUILD_ROWS) & (s[1] <= capacity),
        block,
        (jnp.int32(0), jnp.int32(0), empty),
    )
    return used, lists


def _running_sum(counts: Array) -> Array:
    """Sum by matrix products, exact below 2^24: XLA's scan is slower on a CPU."""
    upper = jnp.triu(jnp.ones((128, 128), jnp.float32))
    inner = jnp.dot(counts.reshape(-1, 128).astype(jnp.float32), upper, precision="highest")
    totals = inner[:, -1]
    before = jnp.cumsum(totals) - totals
    return (inner + before[:, None]).reshape(-1).astype(jnp.int32)


def _bit_of_rank(bits: Array, rank: Array) -> Array:
    """Return the position of the set bit with ``rank`` set bits below it, for each word."""
    position = jnp.zeros(bits.shape, jnp.int32)
    for width in (16, 8, 4, 2, 1):
        low = bits & jnp.uint32((1 << width) - 1)
        below = jax.lax.population_count(low).astype(jnp.int32)
        high = rank >= below
        position = position + jnp.where(high, width, 0)
        rank = jnp.where(high, rank - below, rank)
        bits = jnp.where(high, bits >> width, low)
    return position
