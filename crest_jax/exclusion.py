"""Examples that are already learned leave the selection pool for a while, all or most of them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.losses import handed_back
from crest_jax.streams import RowStream, Strata, new_pass, next_subset
from crest_jax.types import Array

_EMPTY = np.uint32(2**32 - 1)


class Exclusion(NamedTuple):
    """Who is out of play, and what was seen in the current window: one byte an example.

    What is seen goes into a list of fixed length, not into arrays of all examples, so that a step costs
    the same for any number of them.
    """

    log: Array  # [k], uint32: twice the row, plus one where its loss was low; the newest k sightings
    logged: Array  # [], int32: sightings in this window
    finite: Array  # [], bool: all losses that were handed back in this window were finite
    slot: Array  # [], int32: windows closed so far, modulo the windows that an example stays out
    rest: Array  # [n], int8: 0 in play, else one plus the slot at which the example left
    returning: Array  # [w, c], int32: examples of each class that left at each slot and are out
    out: Array  # [c], int32: examples of each class that are out of play

    @property
    def excluded(self) -> Array:
        """Examples out of play, [n], bool."""
        return self.rest > 0


def init_exclusion(
    count: int, num_classes: int, *, capacity: int, windows: int | None = None
) -> Exclusion:
    """Return the state for ``count`` examples, all in play.

    Args:
      count: n, at most ``2**31 - 1``.
      num_classes: c.
      capacity: sightings in a window that are remembered; of more, the oldest are forgotten.
      windows: windows that an example stays out, 1 to 127; None: until its class runs dry.

    Example:
      >>> init_exclusion(2, 1, capacity=4).excluded.tolist()
      [False, False]
    """
    return Exclusion(
        jnp.full(capacity, _EMPTY, jnp.uint32),
        jnp.zeros((), jnp.int32),
        jnp.ones((), bool),
        jnp.zeros((), jnp.int32),
        jnp.zeros(count, jnp.int8),
        jnp.zeros((windows or 1, num_classes), jnp.int32),
        jnp.zeros(num_classes, jnp.int32),
    )


def observe(
    log: Array,
    logged: Array,
    rows: Array,
    losses: Array,
    alpha: float,
    number: Array | int | None = None,
) -> tuple[Array, Array]:
    """Note in ``log`` [k] whether the losses [b] at ``rows`` [b] are below ``alpha``.

    Rows may repeat; only the first ``number`` count, where it is given. Returns the log, and ``logged``
    [] plus the number.

    Example:
      >>> state = init_exclusion(3, 1, capacity=4)
      >>> log, _ = observe(state.log, state.logged, jnp.array([0, 2]), jnp.array([0.5, 0.05]), 0.1)
      >>> log[:2].tolist()
      [0, 5]
    """
    low = losses.astype(jnp.float32) < alpha
    size, turn = log.shape[0], jnp.arange(rows.shape[0])
    number = rows.shape[0] if number is None else number
    places = jnp.where(turn < number, (logged + turn) % size, size)
    noted = 2 * rows.astype(jnp.uint32) + low.astype(jnp.uint32)
    return log.at[places].set(noted, mode="drop"), logged + number


def close_window(
    exclusion: Exclusion, classes: Array, sizes: Array, needed: Array, windows: int | None = None
) -> Exclusion:
    """End a window: learned examples leave; those whose time is over or class runs dry return.

    An example leaves when it was seen at least once in the window and its loss was low at every
    sighting (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4). It returns after ``windows``
    further windows, and must be seen to be learned again before it leaves again: a network forgets
    what it no longer sees. When fewer than ``needed[c]`` examples of class ``c`` would stay in play,
    all of class ``c`` return at once. A new window begins with nothing seen.

    Args:
      exclusion: state.
      classes: [n], integers.
      sizes: [c], int32, examples of each class.
      needed: [c], int32, examples of each class that a stratified draw needs.
      windows: static, as in ``init_exclusion``.

    Example:
      >>> classes, sizes, needed = jnp.zeros(3, int), jnp.array([3]), jnp.array([1])
      >>> state = init_exclusion(3, 1, capacity=4, windows=1)
      >>> state = observe_losses(state, jnp.array([0, 1]), jnp.array([0.05, 0.5]), 0.1)
      >>> state = close_window(state, classes, sizes, needed, windows=1)
      >>> state.excluded.tolist(), state.out.tolist()
      ([True, False, False], [1])
      >>> close_window(state, classes, sizes, needed, windows=1).excluded.tolist()
      [False, False, False]
    """
    count = exclusion.rest.shape[0]
    rest, returning, out, slot = exclusion.rest, exclusion.returning, exclusion.out, exclusion.slot
    stamp = (slot + 1).astype(jnp.int8)
    if windows is not None:
        rest = jnp.where(rest == stamp, jnp.int8(0), rest)
        out = out - returning[slot]
        returning = returning.at[slot].set(0)
    noted = jnp.sort(exclusion.log)  # sightings of a row together, those of a high loss first
    rows = noted >> 1
    first = jnp.concatenate([jnp.ones(1, bool), rows[1:] != rows[:-1]])
    learned = first & (noted & 1 == 1) & (noted != _EMPTY)
    rows = jnp.where(learned, rows, count).astype(jnp.int32)
    before = rest.at[rows].get(mode="clip").astype(jnp.int32)
    own = classes.at[rows].get(mode="clip").astype(jnp.int32)
    ones = learned.astype(jnp.int32)
    was_out = ones * (before > 0).astype(jnp.int32)
    out = out.at[own].add(ones - was_out)
    returning = returning.at[jnp.maximum(before - 1, 0), own].add(-was_out)
    returning = returning.at[slot, own].add(ones)
    rest = rest.at[rows].set(stamp, mode="drop")
    dry = sizes - out < needed
    rest = jax.lax.cond(jnp.any(dry), lambda: jnp.where(dry[classes], jnp.int8(0), rest), lambda: rest)
    return Exclusion(
        log=jnp.full_like(exclusion.log, _EMPTY),
        logged=jnp.zeros_like(exclusion.logged),
        finite=jnp.ones_like(exclusion.finite),
        slot=(slot + 1) % returning.shape[0],
        rest=rest,
        returning=jnp.where(dry[None, :], 0, returning),
        out=jnp.where(dry, 0, out),
    )


@partial(jax.jit, static_argnames="keep")
def stands_for(rest: Array, rows: Array, keep: float) -> Array:
    """Return how many examples each of the rows [...] drawn stands for, float32.

    The paper leaves learned examples out, which biases the gradient: a long training forgets them.
    Kept at a rate (``streams.next_subset``), and weighted by one over it, they cost little, and on
    average the weights of a mini-batch add up as if all examples were in play (Qin et al., "InfoBatch:
    Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024, Section 3).

    The loss of a step is divided by the sum of its weights, though, and the more learned examples a
    mini-batch happens to hold, the larger that is. So on average they weigh a little too little in the
    gradient: with ``a = 1 / keep``, ``m`` examples in a mini-batch and ``p`` the mean share of learned
    ones among them, by a part of about ``(a - 1) (1 - p) / (1 + (a - 1) p)^2 / m``. For ``keep`` of 1/4
    and ``m`` of 128 that is 0.7 % where half of all examples are learned, and 2.3 % where few are.

    Args:
      rest: [n], above 0 where an example is out of play.
      rows: positions in the data set.
      keep: static, share of the learned examples that are drawn all the same, in [0, 1].

    Example:
      >>> stands_for(jnp.array([0, 1], jnp.int8), jnp.array([0, 1]), 0.25).tolist()
      [1.0, 4.0]
    """
    if keep == 0:
        return jnp.ones(rows.shape, jnp.float32)
    return jnp.where(rest[rows] > 0, jnp.float32(1 / keep), jnp.float32(1))


class Away(NamedTuple):
    """The part of an ``Exclusion`` that says who is out; see ``streams.Out``."""

    rest: Array  # [n], int8
    out: Array  # [c], int32


@partial(jax.jit, static_argnames=("size", "keep"))
def weighted_subset(
    stream: RowStream, strata: Strata, rest: Array, out: Array, size: int, keep: float
) -> tuple[RowStream, Array, Array]:
    """Draw rows [size] of those in play, as ``streams.next_subset``, with what each stands for [size].

    Example:
      >>> from crest_jax.streams import make_strata, open_stream
      >>> strata, stream = make_strata(np.zeros(2, int), 1), open_stream(jax.random.key(0), 1)
      >>> weighted_subset(stream, strata, jnp.zeros(2, jnp.int8), jnp.zeros(1, int), 2, 0.5)[2].tolist()
      [1.0, 1.0]
    """
    stream, rows = next_subset(stream, strata, size, Away(rest, out), keep)
    return stream, rows, stands_for(rest, rows, keep)


@jax.jit
def _observe(
    log: Array, logged: Array, finite: Array, rows: Array, losses: Array, alpha: float
) -> tuple[Array, Array, Array]:
    log, logged = observe(log, logged, rows, losses, alpha)
    return log, logged, finite & jnp.all(jnp.isfinite(losses))


def observe_losses(exclusion: Exclusion, rows: Array, losses: Any, alpha: float) -> Exclusion:
    """Note the losses [b] seen at ``rows`` [b], compiled; see ``observe``.

    A loss that is NaN or infinite counts as high, and is told by ``turn_over``: here nothing is read.

    Raises:
      ValueError: when the losses are no floating-point numbers [b].

    Example:
      >>> state = init_exclusion(2, 1, capacity=2)
      >>> int(observe_losses(state, jnp.array([1]), jnp.array([0.5]), 0.1).logged)
      1
    """
    losses = handed_back(losses, rows)
    seen = _observe(exclusion.log, exclusion.logged, exclusion.finite, rows, losses, alpha)
    return exclusion._replace(log=seen[0], logged=seen[1], finite=seen[2])


@partial(jax.jit, static_argnames="windows")
def end_window(
    exclusion: Exclusion, classes: Array, sizes: Array, needed: Array, windows: int | None
) -> tuple[Exclusion, Array]:
    """Close the window, compiled, and say how many are out.

    Example:
      >>> state = init_exclusion(3, 1, capacity=2, windows=1)
      >>> state = observe_losses(state, jnp.array([0]), jnp.array([0.05]), 0.1)
      >>> int(end_window(state, jnp.zeros(3, int), jnp.array([3]), jnp.array([1]), 1)[1])
      1
    """
    closed = close_window(exclusion, classes, sizes, needed, windows)
    return closed, jnp.sum(closed.out, dtype=jnp.int32)


def turn_over(
    state: Any,
    classes: Array,
    sizes: Array,
    needed: Array,
    windows: int | None,
    window: int,
    *,
    skipping: bool = False,
) -> Any:
    """Close the window of a method's state and begin the next, of ``window`` steps.

    The state is a named tuple with ``step``, ``window_end``, ``exclusion`` and ``excluded``. Other
    arguments: see ``close_window``.

    Raises:
      FloatingPointError: when a loss that was handed back in the window was NaN or infinite, unless
        ``skipping``.

    Example:
      >>> class State(NamedTuple):
      ...     step: int
      ...     window_end: int
      ...     exclusion: Exclusion
      ...     excluded: int
      >>> exclusion = init_exclusion(3, 1, capacity=2, windows=1)
      >>> exclusion = observe_losses(exclusion, jnp.array([0]), jnp.array([0.05]), 0.1)
      >>> sizes, needed = jnp.array([3]), jnp.array([1])
      >>> state = turn_over(State(4, 4, exclusion, 0), jnp.zeros(3, int), sizes, needed, 1, 4)
      >>> state.excluded, state.window_end
      (1, 8)
    """
    finite = state.exclusion.finite
    exclusion, excluded = end_window(state.exclusion, classes, sizes, needed, windows)
    if not (skipping or finite):
        raise FloatingPointError(
            "a loss handed to observe was NaN or infinite in the window before step "
            f"{state.step} but all must be finite; lower the learning rate, look for bad inputs, or "
            'count such losses as high with nonfinite="skip".'
        )
    end = state.step + window
    return state._replace(exclusion=exclusion, window_end=end, excluded=int(excluded))


@jax.jit
def _all_in_play(exclusion: Exclusion) -> Exclusion:
    empty = jnp.full_like(exclusion.log, _EMPTY)
    return jax.tree.map(jnp.zeros_like, exclusion)._replace(
        log=empty, finite=jnp.ones_like(exclusion.finite)
    )


def take_all_back(state: Any) -> Any:
    """Return the state of a method, as for ``turn_over``, with all examples in play and none seen.

    Its stream begins a new pass, in which all of them come.

    Example:
      >>> class State(NamedTuple):
      ...     exclusion: Exclusion
      ...     excluded: int
      ...     stream: Any
      >>> from crest_jax.streams import open_stream
      >>> some = init_exclusion(3, 1, capacity=2)._replace(out=jnp.array([2]))
      >>> take_all_back(State(some, 2, open_stream(jax.random.key(0), 1))).exclusion.out.tolist()
      [0]
    """
    exclusion = _all_in_play(state.exclusion)
    return state._replace(exclusion=exclusion, excluded=0, stream=new_pass(state.stream))


def rows_needed(labels: np.ndarray, num_classes: int, size: int) -> Array:
    """Return the rows of each class [c] that a stratified draw of ``size`` out of all needs.

    Example:
      >>> rows_needed(np.array([0, 0, 0, 1]), 2, 2).tolist()
      [2, 1]
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
    return jnp.asarray(-(-size * counts // len(labels)), jnp.int32)
