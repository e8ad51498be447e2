"""Random rows, stratified by class: every row once in each pass, in an order that is never stored."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.devices import place
from crest_jax.types import Array, Source


def compact(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels [n] in the smallest unsigned type that holds them.

    Example:
      >>> compact(np.array([0, 255]), 256).dtype
      dtype('uint8')
    """
    return labels.astype(np.min_scalar_type(num_classes - 1))


class Strata(NamedTuple):
    """The rows of a data set, or of a part of it, by class: 5 bytes a row for up to 256 classes."""

    classes: Array  # [n], unsigned integers, of all rows of the data set
    members: Array  # [k], int32: rows sorted by class
    starts: Array  # [c], int32: where each class begins in `members`
    sizes: Array  # [c], int32


def make_strata(
    labels: np.ndarray,
    num_classes: int,
    rows: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> Strata:
    """Sort rows by class, on the host, once.

    Args:
      labels: [n], integer classes of all rows, in ``[0, num_classes)``; see ``classes.classes_of``.
      num_classes: number of classes; an array of as many entries is made.
      rows: [k], the rows to draw from; None: all.
      mesh: see ``ArraySource``.

    Raises:
      ValueError: when the labels are no such classes.

    Example:
      >>> make_strata(np.array([1, 0, 1]), 2).members.tolist()
      [1, 0, 2]
    """
    classes = compact(_checks.labels_valid(labels, len(labels), num_classes), num_classes)
    own = classes if rows is None else classes[rows]
    order = np.argsort(own, kind="stable").astype(np.int32)
    members = order if rows is None else np.asarray(rows, np.int32)[order]
    sizes = np.bincount(own, minlength=num_classes).astype(np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    return place(Strata(*map(jnp.asarray, (classes, members, starts, sizes))), mesh)


def stratified_quotas(key: Array, counts: Array, size: int, *, most: int) -> Array:
    """Split ``size`` over the classes in proportion to ``counts``, rounding without bias.

    Systematic sampling (Madow, Annals of Mathematical Statistics 1949): with ``x_c = size * p_c`` and
    one uniform ``u``, class ``c`` gets ``floor(X_c + u) - floor(X_{c-1} + u)`` where ``X`` is the
    running sum of ``x``; the expectation is ``x_c`` and the error is below 1. The arithmetic is exact
    while ``(size + 1) * most`` fits 31 bits; above, where a subset is a tiny share, it is float32.

    Args:
      key: PRNG key.
      counts: [c], int32, rows of each class; their sum must be at least ``size``.
      size: rows to draw.
      most: static bound on the sum of the counts.

    Returns:
      [c], int32, summing to ``size``, none above its count.

    Example:
      >>> stratified_quotas(jax.random.key(0), jnp.array([30, 10]), 8, most=40).tolist()
      [6, 2]
    """
    running, total = jnp.cumsum(counts, dtype=jnp.int32), jnp.sum(counts, dtype=jnp.int32)
    if (size + 1) * most < 2**31:
        edges = (size * running + jax.random.randint(key, (), 0, total, jnp.int32)) // total
    else:
        shares = running.astype(jnp.float32) / total.astype(jnp.float32)
        offset = jax.random.uniform(key, (), jnp.float32)
        edges = jnp.floor(size * shares + offset).astype(jnp.int32)
        # Undo what rounding broke: enough left for the later classes, and no class above its count.
        edges = jnp.clip(edges, size - (total - running), jnp.minimum(running, size))
        edges = running - jax.lax.cummax(running - edges)
    return jnp.diff(edges, prepend=0)


class RowStream(NamedTuple):
    """Where a walk through the rows of each class has come to.

    The order of a pass is a pseudo-random permutation that is computed where it is needed and never
    stored, so a draw costs time in its own size only, however many rows there are, and rows that leave
    or return do so at once.
    """

    key: Array  # of the rounding of the quotas
    seed: Array  # [2], uint32: of the orders
    cursors: Array  # [c], int32: places that this pass has gone through
    passes: Array  # [c], int32: passes that have ended


class Out(Protocol):
    """The rows that are out of play; see ``exclusion.Exclusion``."""

    @property
    def rest(self) -> Array:
        """Above 0 where a row is out, [n]."""

    @property
    def out(self) -> Array:
        """How many rows of each class are out, [c], int32."""


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
    stream: RowStream, strata: Strata, size: int, out: Out | None = None, keep: float = 0.0
) -> tuple[RowStream, Array]:
    """Draw rows [size], grouped by class, each class in proportion to its rows in play.

    No row comes twice in one draw, and none comes again in a pass, but for the rows that fill the draw
    with which a class ends its pass.

    Args:
      stream: where the walk has come to.
      strata: the rows.
      size: rows to draw, at most those in play.
      out: the rows out of play; None: none are.
      keep: static, share of the rows out of play that are drawn all the same, others in every pass.

    Example:
      >>> strata = make_strata(np.arange(8) % 2, 2)
      >>> stream = open_stream(jax.random.key(0), 2)
      >>> stream, first = next_subset(stream, strata, 4)
      >>> sorted(first.tolist() + next_subset(stream, strata, 4)[1].tolist())
      [0, 1, 2, 3, 4, 5, 6, 7]
    """
    rest, counts = (None, None) if out is None else (out.rest, out.out)
    return _draw(stream, strata, rest, counts, size, keep)


@partial(jax.jit, static_argnames=("size", "keep"))
def _draw(
    stream: RowStream, strata: Strata, rest: Array | None, out: Array | None, size: int, keep: float
) -> tuple[RowStream, Array]:
    key, quota_key = jax.random.split(stream.key)
    sizes = strata.sizes
    in_play = sizes
    if out is not None:
        in_play = sizes - out + jnp.round(keep * out.astype(jnp.float32)).astype(jnp.int32)
    quotas = stratified_quotas(quota_key, in_play, size, most=strata.members.shape[0])
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
    group = jnp.searchsorted(ends, lanes, side="right").astype(jnp.int32)
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
    """Walk on until every class has given its quota of rows in play; return rows and places walked.

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
            fits |= _mix(candidates.astype(jnp.uint32) ^ _mix(seeds[group] + 1)) < limit
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
    mixed = _mix(stream.seed[0] + _mix(stream.seed[1] + classes))
    return _mix(mixed + stream.passes.astype(jnp.uint32))


def _mix(x: Array) -> Array:
    """Scatter 32-bit numbers: the finaliser of MurmurHash3 (Appleby, public domain), a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_ROUNDS = 4


def scramble(places: Array, sizes: Array, seeds: Array) -> Array:
    """Return where a pseudo-random permutation of ``range(sizes)`` takes ``places``, lane by lane.

    A Feistel network on pairs ``(x, y)`` with ``a b >= size``, walked until it comes back into the
    range (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
      places: [b], int32, in ``[0, sizes)``.
      sizes: [b], int32, at least 1.
      seeds: [b], uint32; equal seeds and sizes give the same permutation.

    Example:
      >>> sorted(scramble(jnp.arange(5), jnp.full(5, 5), jnp.full(5, 7, jnp.uint32)).tolist())
      [0, 1, 2, 3, 4]
    """
    size = sizes.astype(jnp.uint32)
    a = jnp.sqrt(sizes.astype(jnp.float32)).astype(jnp.uint32) + 1
    b = (size + a - 1) // a

    def once(x: Array) -> Array:
        left, right = x // b, x % b
        for turn in range(_ROUNDS):
            left = (left + _mix(right + _mix(seeds + jnp.uint32(2 * turn))) % a) % a
            right = (right + _mix(left + _mix(seeds + jnp.uint32(2 * turn + 1))) % b) % b
        return left * b + right

    def outside(x: Array) -> Array:
        return jnp.any(x >= size)

    def again(x: Array) -> Array:
        return jnp.where(x >= size, once(x), x)

    return jax.lax.while_loop(outside, again, once(places.astype(jnp.uint32))).astype(jnp.int32)


# (stream, ...) -> the stream, rows [m], weights [m]: a pure function
Draw = Callable[..., tuple[RowStream, Array, Array]]


class Lookahead:
    """Draws the next rows and has a source fetch them while the device trains.

    It remembers nothing but results of pure functions, found again by the identity of what they came
    from, so that a state that was saved and restored gives the same rows. Without ``source.prefetch``
    it does nothing. What it gives away it forgets, for the mini-batch's arrays may be donated.
    """

    def __init__(self, source: Source) -> None:
        """Look ahead for one source."""
        self._prefetch = getattr(source, "prefetch", None)
        self._origin: tuple[Any, ...] = ()
        self._found: Any = None

    def fetch(self, rows: Array) -> None:
        """Let the source fetch rows [b] that it will be asked for soon."""
        if self._prefetch is not None:
            self._prefetch(rows)

    def draw(self, draw: Draw, stream: RowStream, *args: Any) -> tuple[RowStream, Array, Array]:
        """Return ``draw(stream, *args)``, and draw and fetch what comes after it."""
        if self._prefetch is None:
            return draw(stream, *args)
        found = self._known(stream, *args)
        if found is None:
            found = draw(stream, *args)
            self._prefetch(found[1])
        after = draw(found[0], *args)
        self._remember(after, found[0], *args)
        self._prefetch(after[1])
        return found

    def nth_coreset(self, rows: Array, weights: Array, index: int, last: int) -> tuple[Array, Array]:
        """Return rows and weights [m] of a coreset of those held, and fetch the one after it."""
        if self._prefetch is None:
            return nth_row(rows, weights, np.int32(index))
        found = self._known(rows, index)
        if found is None:
            found = nth_row(rows, weights, np.int32(index))
            self._prefetch(found[0])
        if index < last:
            after = nth_row(rows, weights, np.int32(index + 1))
            self._remember(after, rows, index + 1)
            self._prefetch(after[0])
        return found

    def _known(self, *origin: Any) -> Any:
        same = len(origin) == len(self._origin) and all(
            x == y if isinstance(x, (int, float)) else x is y
            for x, y in zip(origin, self._origin, strict=True)
        )
        found = self._found if same else None
        self._remember(None)
        return found

    def _remember(self, found: Any, *origin: Any) -> None:
        self._origin, self._found = origin, found


@jax.jit
def nth_row(rows: Array, weights: Array, index: Array) -> tuple[Array, Array]:
    """Return one row of each of two arrays [p, m].

    Example:
      >>> nth_row(jnp.eye(2), jnp.ones((2, 2)), np.int32(1))[0].tolist()
      [0.0, 1.0]
    """
    return rows[index], weights[index]
