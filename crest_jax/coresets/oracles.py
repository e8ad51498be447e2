"""Where the lazy greedy choice takes dissimilarities from: embeddings, or a given matrix."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets import metrics, sums
from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.types import Array

T = TypeVar("T")
BLOCK = 64  # candidates in a block
TILE = 1024  # clients that one matrix product covers, so that its result stays in cache
_SLACK = 1 + 3e-6  # rounding of sums of n terms, by which a bound is raised


class Oracle(Protocol):
    """Where dissimilarities come from; candidates are padded to whole blocks."""

    num_clients: int
    tile: int  # clients whose bits are packed together
    weights: Array | None  # [n], how much each client counts; None: one each
    begun: bool  # whether rows of elsewhere cover clients before the first pick

    def start(self) -> tuple[Array, Array, Array]:
        """Dissimilarity [] at which the similarity is 0, cover [n] and upper bounds of gains [m].

        Before any pick.
        """

    def all_bounds(self, cover: Array) -> Array:
        """Upper bounds [m] of all gains."""

    def bounds(self, rows: Array, cover: Array) -> Array:
        """Upper bounds [b] of the gains of some candidates."""

    def exact(self, row: Array) -> Array:
        """Dissimilarities [n] of one candidate to all clients."""

    def closer(self, rows: Array, cover: Array) -> Array:
        """Whether a candidate may be closer to a client than its cover is, as bits [b, n / 32].

        Bit ``k`` of word ``w`` of a tile of ``t`` words stands for client ``k t + w`` of that tile.
        """

    def pairs(self, rows: Array, clients: Array) -> Array:
        """Dissimilarities [t] of candidates to clients, pair by pair."""


def padded(count: int) -> int:
    """Return the rows that ``count`` rows are padded to: whole blocks, and whole tiles when many."""
    unit = BLOCK if count <= TILE else TILE
    return -(-count // unit) * unit


def _range(count: int) -> Array:
    return jnp.arange(count, dtype=jnp.int32)


def _loop(turns: int, body: Callable[[Array, T], T], start: T) -> T:
    """Run a loop with a 32-bit counter, whatever JAX's default is."""
    return jax.lax.fori_loop(np.int32(0), np.int32(turns), body, start)


def gains_of(cover: Array, values: Array, weights: Array | None = None) -> Array:
    """Gains [b] of candidates with dissimilarities [b, n] to clients that count ``weights`` [n]."""
    excess = jnp.maximum(cover[None, :] - values, 0.0)
    excess = excess if weights is None else excess * weights[None, :]
    add = lambda excess: jnp.sum(excess, axis=1)  # noqa: E731
    return jax.lax.platform_dependent(excess, cpu=_row_sums, default=add)


def _row_sums(excess: Array) -> Array:
    # A product with ones instead of a sum: see metrics. Two levels, so that float32 suffices.
    width = next(width for width in (128, 64, 1) if excess.shape[1] % width == 0)
    if width == 1:
        return jnp.sum(excess, axis=1)
    parts = excess.reshape(-1, width)
    totals = jnp.dot(parts, jnp.ones(width, jnp.float32), precision="highest")
    return jnp.sum(totals.reshape(excess.shape[0], -1), axis=1)


def _packed(bits: Array) -> Array:
    """Pack booleans [b, w] into [b, w / 32]: bit ``k`` of word ``i`` is place ``k w / 32 + i``."""
    words = bits.shape[1] // 32
    packed = jnp.zeros((bits.shape[0], words), jnp.uint32)
    for k in range(32):
        packed = packed | (bits[:, k * words : (k + 1) * words].astype(jnp.uint32) << k)
    return packed


class PointOracle:
    """Dissimilarities computed from embeddings, ``O(n d)`` memory."""

    def __init__(
        self,
        metric: Metric,
        candidates: Points,
        clients: Points,
        valid: Array,
        top: Array | None,
        weights: Array | None = None,
        earlier: Array | None = None,
    ) -> None:
        """Take padded candidates [m] and clients [n], and which clients [n] are real.

        ``top`` is the dissimilarity at which the similarity is 0; None, where candidates and clients
        are the same, for the largest between real ones. Clients count ``weights`` [n] each, and lie
        ``earlier`` [n] from the nearest row of elsewhere, if there are any.
        """
        self.weights, self.begun, self._earlier = weights, earlier is not None, earlier
        self.metric, self.num_clients, self.tile = metric, clients.rows, min(TILE, clients.rows)
        self._candidates, self._clients, self._valid = candidates, clients, valid
        self._tiles = sums.to_tiles(clients, self.tile)
        self._client_lengths = sums.lengths(metric, clients)
        self._lengths = self._client_lengths
        if candidates is not clients:
            self._lengths = sums.lengths(metric, candidates)
        self._top = top if metric.fixed_top is None else jnp.float32(metric.fixed_top)

    def _lower(self, rows: Points, lengths: Array, tile: Array) -> Array:
        """Lower bounds [b, w] of sums to one tile of clients."""
        columns = metrics.take_rows(self._tiles, tile)
        client_lengths = self._client_lengths.reshape(-1, self.tile)[tile]
        return sums.lower(self.metric, rows, lengths, columns, client_lengths)

    def _tile_bounds(self, rows: Array, tile: Array, cover: Array) -> Array:
        """Upper bounds [b] of the part of the gains that one tile of clients gives."""
        lower = self._lower(metrics.take_rows(self._candidates, rows), self._lengths[rows], tile)
        values = self.metric.lower_from_sums(lower)
        return gains_of(cover.reshape(-1, self.tile)[tile], values, self._weights_of(tile))

    def _weights_of(self, tile: Array) -> Array | None:
        return None if self.weights is None else self.weights.reshape(-1, self.tile)[tile]

    def _cover(self, top: Array) -> Array:
        """Cover [n] before any pick."""
        first = top if self._earlier is None else jnp.minimum(self._earlier, top)
        return jnp.where(self._valid, first, -jnp.inf)

    def start(self) -> tuple[Array, Array, Array]:
        """Return the zero of similarity, cover and bounds of gains before any pick; see ``Oracle``."""
        if self._top is not None:
            cover = self._cover(self._top)
            return self._top, cover, self.all_bounds(cover)
        blocks = _range(self._candidates.rows).reshape(-1, 64)
        valid = self._valid.reshape(-1, self.tile)
        lengths = jnp.where(self._valid, self._lengths, -jnp.inf)

        def add_tile(tile: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            def add_block(highest: Array, rows: Array) -> tuple[Array, Array]:
                points = metrics.take_rows(self._candidates, rows)
                lower = self._lower(points, lengths[rows], tile)
                values = self.metric.lower_from_sums(lower)
                within = jnp.where(valid[tile], values, 0.0)
                return jnp.maximum(highest, lower), gains_of(zeros, -within, self._weights_of(tile))

            totals, farthest = state
            zeros = jnp.zeros(self.tile, jnp.float32)
            start = jnp.full((blocks.shape[1], self.tile), -jnp.inf, jnp.float32)
            highest, part = jax.lax.scan(add_block, start, blocks)
            return totals + part, farthest.at[tile].set(jnp.max(highest, axis=0))

        empty = (jnp.zeros(blocks.shape, jnp.float32), jnp.zeros(valid.shape, jnp.float32))
        totals, farthest = _loop(self.num_clients // self.tile, add_tile, empty)
        top = self._diameter(farthest.reshape(-1))
        each = self._valid if self.weights is None else jnp.where(self._valid, self.weights, 0.0)
        count = jnp.sum(each, dtype=jnp.float32)
        bounds = jnp.maximum(count * top - totals.reshape(-1), 0.0) + (_SLACK - 1) * count * top
        return top, self._cover(top), bounds

    def _diameter(self, farthest: Array) -> Array:
        """Return the largest dissimilarity [] between real clients.

        ``farthest`` [n] are lower bounds of the largest sum from each. Those whose upper
        bound exceeds what is found are looked at closely, one by one.
        """
        longest = jnp.max(jnp.where(self._valid, self._lengths, 0.0))
        above = sums.spread(self._clients, self._client_lengths + longest)
        upper = jnp.where(self._valid, farthest + above, -jnp.inf)

        def look(state: tuple[Array, Array]) -> tuple[Array, Array]:
            upper, best = state
            client = first_largest(upper)
            row = metrics.take_rows(self._clients, client)
            direct = sums.to_all(self.metric, row, self._tiles)
            found = jnp.max(jnp.where(self._valid, direct.reshape(-1), 0.0))
            return upper.at[client].set(-jnp.inf), jnp.maximum(best, found)

        start = (upper, jnp.float32(0))
        largest = jax.lax.while_loop(lambda state: jnp.max(state[0]) > state[1], look, start)[1]
        return self.metric.from_sums(largest)

    def all_bounds(self, cover: Array) -> Array:
        """Return upper bounds [m] of all gains."""
        blocks = _range(self._candidates.rows).reshape(-1, 64)

        def add_tile(tile: Array, totals: Array) -> Array:
            return totals + jax.lax.map(lambda rows: self._tile_bounds(rows, tile, cover), blocks)

        zeros = jnp.zeros(blocks.shape, jnp.float32)
        totals = _loop(self.num_clients // self.tile, add_tile, zeros)
        return totals.reshape(-1) * _SLACK

    def bounds(self, rows: Array, cover: Array) -> Array:
        """Return upper bounds [b] of the gains of some candidates."""

        def add_tile(tile: Array, totals: Array) -> Array:
            return totals + self._tile_bounds(rows, tile, cover)

        zeros = jnp.zeros(rows.shape, jnp.float32)
        return _loop(self.num_clients // self.tile, add_tile, zeros) * _SLACK

    def exact(self, row: Array) -> Array:
        """Return dissimilarities [n] of one candidate to all clients."""
        direct = sums.to_all(self.metric, metrics.take_rows(self._candidates, row), self._tiles)
        return self.metric.from_sums(direct).reshape(-1)

    def closer(self, rows: Array, cover: Array) -> Array:
        """Return which clients a candidate may improve, as bits [b, n / 32]; see ``Oracle``."""
        points, lengths = metrics.take_rows(self._candidates, rows), self._lengths[rows]
        reach = self.metric.to_sums(cover).reshape(-1, self.tile)

        def one(tile: Array) -> Array:
            return _packed(self._lower(points, lengths, tile) < reach[tile][None, :])

        return jax.lax.map(one, _range(len(reach))).transpose(1, 0, 2).reshape(len(rows), -1)

    def pairs(self, rows: Array, clients: Array) -> Array:
        """Return dissimilarities [t], pair by pair."""
        x, y = metrics.take_rows(self._candidates, rows), metrics.take_rows(self._clients, clients)
        return self.metric.from_sums(sums.pairs(self.metric, x, y))

    def begin(self) -> tuple[Array, Array]:
        """Return the zero of similarity [] and the cover [n] before any pick, from direct sums."""
        if self._top is not None:
            return self._top, self._cover(self._top)

        def farthest(rows: Array) -> Array:
            values = jnp.where(self._valid[None, :], self.direct(rows), 0.0)
            return jnp.max(jnp.where(self._valid[rows], jnp.max(values, axis=1), 0.0))

        top = jnp.max(jax.lax.map(farthest, self._in_blocks()))
        return top, self._cover(top)

    def _in_blocks(self) -> Array:
        count = self._candidates.rows
        return _range(count).reshape(-1, next(k for k in (256, 64) if count % k == 0))

    def direct(self, rows: Array) -> Array:
        """Return dissimilarities [b, n] of some candidates to all clients."""
        points = metrics.take_rows(self._candidates, rows)
        return self.metric.from_sums(sums.between(self.metric, points, self._clients))

    def direct_gains(self, cover: Array) -> Array:
        """Return the gains [m] of all candidates, from direct sums."""

        def gains(rows: Array) -> Array:
            return gains_of(cover, self.direct(rows), self.weights)

        return jax.lax.map(gains, self._in_blocks()).reshape(-1)

    def gains_lost(self, clients: Array, before: Array, after: Array, each: Array) -> Array:
        """Return by how much all gains [m] fall when the cover of clients [k], each counted, does."""
        theirs = metrics.take_rows(self._clients, clients)
        values = self.metric.from_sums(sums.between(self.metric, self._candidates, theirs))
        less = jnp.maximum(before[None, :] - jnp.maximum(after[None, :], values), 0.0)
        return jnp.sum(less * each[None, :], axis=1)


class MatrixOracle:
    """Negated similarities read from a matrix [m, n] of candidates to clients; no copy is made."""

    begun = False

    def __init__(self, similarities: Array, weights: Array | None = None) -> None:
        """Take the matrix; an example without a pick counts as covered with similarity 0."""
        self._similarities, self.weights = similarities, weights
        self._num_candidates, self.num_clients = similarities.shape
        self.tile = padded(self.num_clients)

    def start(self) -> tuple[Array, Array, Array]:
        """Return the zero of similarity, cover and bounds of gains before any pick; see ``Oracle``."""
        cover = jnp.zeros(self.num_clients, jnp.float32)
        return jnp.float32(0), cover, self.all_bounds(cover)

    def _values(self, rows: Array) -> Array:
        return -self._similarities[jnp.minimum(rows, self._num_candidates - 1)]

    def all_bounds(self, cover: Array) -> Array:
        """Return upper bounds [m] of all gains."""
        total = padded(self._num_candidates)
        rows = _range(total).reshape(-1, 8)
        return jax.lax.map(lambda block: self.bounds(block, cover), rows).reshape(total)

    def bounds(self, rows: Array, cover: Array) -> Array:
        """Return upper bounds [b] of the gains of some candidates."""
        return gains_of(cover, self._values(rows), self.weights) * _SLACK

    def exact(self, row: Array) -> Array:
        """Return dissimilarities [n] of one candidate to all clients."""
        return self._values(row)

    def closer(self, rows: Array, cover: Array) -> Array:
        """Return which clients a candidate may improve, as bits [b, n / 32]; see ``Oracle``."""
        closer = self._values(rows) < cover[None, :]
        return _packed(jnp.pad(closer, ((0, 0), (0, self.tile - self.num_clients))))

    def pairs(self, rows: Array, clients: Array) -> Array:
        """Return dissimilarities [t], pair by pair."""
        return -self._similarities[jnp.minimum(rows, self._num_candidates - 1), clients]
