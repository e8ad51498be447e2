"""Where the lazy greedy choice takes dissimilarities from: embeddings, or a given matrix."""

from typing import Protocol

import jax
import jax.numpy as jnp

from crest_jax import metrics
from crest_jax.facility_location import first_largest
from crest_jax.metrics import Metric, Points
from crest_jax.types import Array

BLOCK = 64  # candidates in a block
TILE = 1024  # clients that one matrix product covers, so that its result stays in cache
_SLACK = 1 + 3e-6  # rounding of sums of n terms, by which a bound is raised


class Oracle(Protocol):
    """Where dissimilarities come from; candidates are padded to whole blocks."""

    num_clients: int
    tile: int  # clients whose bits are packed together

    def start(self) -> Array:
        """Cover [n] before any pick."""

    def first_bounds(self) -> tuple[Array, Array]:
        """Upper bounds [m] of all gains before any pick, and an end [].

        An end is a client at the largest dissimilarity from another, to float32 rounding; it is
        meaningful where candidates and clients are the same.
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


def gains_of(cover: Array, values: Array) -> Array:
    """Gains [b] of candidates with dissimilarities [b, n]."""
    # A product with ones instead of a sum: see metrics. Two levels, so that float32 suffices.
    excess = jnp.maximum(cover[None, :] - values, 0.0)
    width = next(width for width in (128, 64, 1) if excess.shape[1] % width == 0)
    if width == 1:
        return jnp.sum(excess, axis=1)
    parts = excess.reshape(-1, width)
    sums = jnp.dot(parts, jnp.ones(width, jnp.float32), precision="highest")
    return jnp.sum(sums.reshape(excess.shape[0], -1), axis=1)


def _packed(bits: Array) -> Array:
    """Pack booleans [b, w] into [b, w / 32]: bit ``k`` of word ``i`` is place ``k w / 32 + i``."""
    words = bits.shape[1] // 32
    packed = jnp.zeros((bits.shape[0], words), jnp.uint32)
    for k in range(32):
        packed = packed | (bits[:, k * words : (k + 1) * words].astype(jnp.uint32) << k)
    return packed


class PointOracle:
    """Dissimilarities computed from embeddings, ``O(n d)`` memory."""

    def __init__(self, metric: Metric, candidates: Points, clients: Points, valid: Array) -> None:
        """Take padded candidates [m] and clients [n], and which clients [n] are real."""
        self.metric, self.num_clients, self.tile = metric, clients.rows, min(TILE, clients.rows)
        self._candidates, self._clients, self._valid = candidates, clients, valid
        self._tiles = metrics.to_tiles(clients, self.tile)
        self._client_lengths = metrics.squared_lengths(clients)
        self._same = candidates is clients
        self._lengths = self._client_lengths
        if not self._same:
            self._lengths = metrics.squared_lengths(candidates)

    def start(self) -> Array:
        """Return the cover [n] before any pick; see ``Oracle``."""
        longest = jnp.maximum(jnp.max(self._lengths), jnp.max(self._client_lengths))
        top = self.metric.top(self.metric.from_squared(4 * longest * (1 + 1e-5)))
        return jnp.where(self._valid, top, -jnp.inf)

    def _lower(self, rows: Points, lengths: Array, tile: Array) -> Array:
        """Lower bounds [b, w] of squared distances to one tile of clients."""
        columns = Points(tuple(part[tile] for part in self._tiles.parts))
        client_lengths = self._client_lengths.reshape(-1, self.tile)[tile]
        return metrics.lower_squared(rows, lengths, columns, client_lengths)

    def _tile_bounds(self, rows: Array, tile: Array, cover: Array) -> Array:
        """Upper bounds [b] of the part of the gains that one tile of clients gives."""
        lower = self._lower(metrics.take_rows(self._candidates, rows), self._lengths[rows], tile)
        values = self.metric.lower_from_squared(jnp.maximum(lower, 0.0))
        return gains_of(cover.reshape(-1, self.tile)[tile], values)

    def first_bounds(self) -> tuple[Array, Array]:
        """Return upper bounds [m] of all gains before any pick, and an end; see ``Oracle``."""
        cover = self.start().reshape(-1, self.tile)
        blocks = jnp.arange(self._candidates.rows).reshape(-1, 64)
        lengths = self._lengths
        if self._same:
            lengths = jnp.where(self._valid, lengths, -jnp.inf)

        def add_tile(tile: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            def add_block(highest: Array, rows: Array) -> tuple[Array, Array]:
                points = metrics.take_rows(self._candidates, rows)
                lower = self._lower(points, lengths[rows], tile)
                values = self.metric.lower_from_squared(jnp.maximum(lower, 0.0))
                return jnp.maximum(highest, lower), gains_of(cover[tile], values)

            sums, farthest = state
            start = jnp.full((blocks.shape[1], self.tile), -jnp.inf)
            highest, part = jax.lax.scan(add_block, start, blocks)
            return sums + part, farthest.at[tile].set(jnp.max(highest, axis=0))

        zeros = (jnp.zeros(blocks.shape, jnp.float32), jnp.zeros(cover.shape, jnp.float32))
        sums, farthest = jax.lax.fori_loop(0, self.num_clients // self.tile, add_tile, zeros)
        farthest = jnp.where(self._valid, farthest.reshape(-1), -jnp.inf)
        return sums.reshape(-1) * _SLACK, first_largest(farthest)

    def all_bounds(self, cover: Array) -> Array:
        """Return upper bounds [m] of all gains."""
        blocks = jnp.arange(self._candidates.rows).reshape(-1, 64)

        def add_tile(tile: Array, sums: Array) -> Array:
            return sums + jax.lax.map(lambda rows: self._tile_bounds(rows, tile, cover), blocks)

        zeros = jnp.zeros(blocks.shape, jnp.float32)
        sums = jax.lax.fori_loop(0, self.num_clients // self.tile, add_tile, zeros)
        return sums.reshape(-1) * _SLACK

    def bounds(self, rows: Array, cover: Array) -> Array:
        """Return upper bounds [b] of the gains of some candidates."""

        def add_tile(tile: Array, sums: Array) -> Array:
            return sums + self._tile_bounds(rows, tile, cover)

        zeros = jnp.zeros(rows.shape, jnp.float32)
        return jax.lax.fori_loop(0, self.num_clients // self.tile, add_tile, zeros) * _SLACK

    def exact(self, row: Array) -> Array:
        """Return dissimilarities [n] of one candidate to all clients."""
        squared = metrics.squared_to_all(metrics.take_rows(self._candidates, row), self._tiles)
        return self.metric.from_squared(squared).reshape(-1)

    def closer(self, rows: Array, cover: Array) -> Array:
        """Return which clients a candidate may improve, as bits [b, n / 32]; see ``Oracle``."""
        points, lengths = metrics.take_rows(self._candidates, rows), self._lengths[rows]
        reach = self.metric.to_squared(cover).reshape(-1, self.tile)

        def one(tile: Array) -> Array:
            return _packed(self._lower(points, lengths, tile) < reach[tile][None, :])

        return jax.lax.map(one, jnp.arange(len(reach))).transpose(1, 0, 2).reshape(len(rows), -1)

    def largest(self, end: Array) -> Array:
        """Return the largest dissimilarity of a client to any."""
        return jnp.max(jnp.where(self._valid, self.exact(end), 0.0))

    def pairs(self, rows: Array, clients: Array) -> Array:
        """Return dissimilarities [t], pair by pair."""
        x, y = metrics.take_rows(self._candidates, rows), metrics.take_rows(self._clients, clients)
        return self.metric.from_squared(metrics.squared_pairs(x, y))


class MatrixOracle:
    """Negated similarities read from a symmetric matrix [n, n]; nothing else is stored."""

    def __init__(self, similarities: Array) -> None:
        """Take the matrix; an example without a pick counts as covered with similarity 0."""
        self._similarities = similarities
        self.num_clients = similarities.shape[0]
        self.tile = padded(self.num_clients)

    def start(self) -> Array:
        """Return the cover [n] before any pick; see ``Oracle``."""
        return jnp.zeros(self.num_clients, jnp.float32)

    def first_bounds(self) -> tuple[Array, Array]:
        """Return upper bounds [m] of all gains before any pick, and no end; see ``Oracle``."""
        return self.all_bounds(self.start()), jnp.int32(0)

    def _values(self, rows: Array) -> Array:
        return -self._similarities[jnp.minimum(rows, self.num_clients - 1)]

    def all_bounds(self, cover: Array) -> Array:
        """Return upper bounds [m] of all gains."""
        total = padded(self.num_clients)
        rows = jnp.arange(total).reshape(-1, 8)
        return jax.lax.map(lambda block: self.bounds(block, cover), rows).reshape(total)

    def bounds(self, rows: Array, cover: Array) -> Array:
        """Return upper bounds [b] of the gains of some candidates."""
        return gains_of(cover, self._values(rows)) * _SLACK

    def exact(self, row: Array) -> Array:
        """Return dissimilarities [n] of one candidate to all clients."""
        return self._values(row)

    def closer(self, rows: Array, cover: Array) -> Array:
        """Return which clients a candidate may improve, as bits [b, n / 32]; see ``Oracle``."""
        closer = self._values(rows) < cover[None, :]
        return _packed(jnp.pad(closer, ((0, 0), (0, self.tile - self.num_clients))))

    def pairs(self, rows: Array, clients: Array) -> Array:
        """Return dissimilarities [t], pair by pair."""
        return -self._similarities[jnp.minimum(rows, self.num_clients - 1), clients]
