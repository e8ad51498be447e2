"""Examples that are already learned leave the selection pool for a while, all or most of them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.data import open_stream
from crest_jax.types import Array


class Exclusion(NamedTuple):
    """What is known of each example's loss in the current window: 5 bytes an example."""

    highest: Array  # [n], float32: highest loss seen in this window, -inf where not seen
    rest: Array  # [n], int8: windows that the example still stays out, 0 in play

    @property
    def excluded(self) -> Array:
        """Examples out of play, [n], bool."""
        return self.rest > 0


def init_exclusion(count: int) -> Exclusion:
    """Return the state for ``count`` examples, all in play.

    Example:
      >>> init_exclusion(2).excluded.tolist()
      [False, False]
    """
    return Exclusion(jnp.full(count, -jnp.inf, jnp.float32), jnp.zeros(count, jnp.int8))


def observe(exclusion: Exclusion, rows: Array, losses: Array) -> Exclusion:
    """Record the losses [b] seen at ``rows`` [b]; rows may repeat.

    Example:
      >>> observe(init_exclusion(2), jnp.array([1]), jnp.array([0.5])).highest.tolist()
      [-inf, 0.5]
    """
    return exclusion._replace(highest=exclusion.highest.at[rows].max(losses))


def close_window(
    exclusion: Exclusion, classes: Array, needed: Array, alpha: float, windows: int | None = None
) -> Exclusion:
    """End a window: learned examples leave; those whose time is over or class runs dry return.

    An example leaves when it was seen at least once in the window and its loss was below ``alpha`` at
    every sighting (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4). It returns after ``windows``
    further windows, and must be seen to be learned again before it leaves again: a network forgets
    what it no longer sees. When fewer than ``needed[c]`` examples of class ``c`` would stay in play,
    all of class ``c`` return at once. A new window begins with nothing seen.

    Args:
      exclusion: state.
      classes: [n], int32.
      needed: [c], int32, examples of each class that a stratified draw needs.
      alpha: threshold on the loss.
      windows: static, 1 to 127; None keeps examples out until their class runs dry, as in the paper.

    Example:
      >>> classes, needed = jnp.zeros(3, int), jnp.array([1])
      >>> state = observe(init_exclusion(3), jnp.array([0, 1]), jnp.array([0.05, 0.5]))
      >>> state = close_window(state, classes, needed, 0.1, windows=1)
      >>> state.excluded.tolist()
      [True, False, False]
      >>> close_window(state, classes, needed, 0.1, windows=1).excluded.tolist()
      [False, False, False]
    """
    seen = exclusion.highest > -jnp.inf
    learned = seen & (exclusion.highest < alpha)
    left = exclusion.rest if windows is None else jnp.maximum(exclusion.rest - 1, 0)
    rest = jnp.where(learned, jnp.int8(windows or 1), left)
    num_classes = needed.shape[0]
    in_play = jnp.bincount(classes, weights=(rest == 0).astype(jnp.int32), length=num_classes)
    dry = in_play < needed
    rest = jnp.where(dry[classes], jnp.int8(0), rest)
    return init_exclusion(classes.shape[0])._replace(rest=rest)


@partial(jax.jit, static_argnames="keep")
def in_play(exclusion: Exclusion, keep: float, key: Array) -> Array:
    """Choose the rows of a pass [n], bool: all that are not learned, and a random share of the rest.

    The paper leaves learned examples out, which biases the gradient: a long training forgets them.
    Kept at a rate, and weighted by one over it (``stands_for``), they cost little and the mean gradient
    stays that of all examples (Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic
    Data Pruning", ICLR 2024, Section 3).

    Args:
      exclusion: state.
      keep: static, share of the learned examples that stay in play, in [0, 1].
      key: PRNG key of this pass.

    Example:
      >>> state = Exclusion(jnp.zeros(4), jnp.array([0, 1, 1, 1], jnp.int8))
      >>> in_play(state, 0.0, jax.random.key(0)).tolist()
      [True, False, False, False]
      >>> in_play(state, 0.5, jax.random.key(0)).tolist()
      [True, False, True, True]
    """
    if keep == 0:
        return ~exclusion.excluded
    return ~exclusion.excluded | (jax.random.uniform(key, exclusion.rest.shape) < keep)


@partial(jax.jit, static_argnames="keep")
def stands_for(exclusion: Exclusion, rows: Array, keep: float) -> Array:
    """Return how many examples each of the rows [b] drawn by ``in_play`` stands for, [b], float32.

    Example:
      >>> state = Exclusion(jnp.zeros(2), jnp.array([0, 1], jnp.int8))
      >>> stands_for(state, jnp.array([0, 1]), 0.25).tolist()
      [1.0, 4.0]
    """
    if keep == 0:
        return jnp.ones(rows.shape, jnp.float32)
    return jnp.where(exclusion.excluded[rows], 1 / keep, 1.0)


observe_losses = jax.jit(observe)


@partial(jax.jit, static_argnames="windows")
def end_window(
    exclusion: Exclusion, classes: Array, needed: Array, alpha: float, windows: int | None
) -> tuple[Exclusion, Array, Array]:
    """Close the window, compiled; say whether an example left or returned, and how many are out.

    Example:
      >>> classes, needed = jnp.zeros(3, int), jnp.array([1])
      >>> state = observe(init_exclusion(3), jnp.array([0]), jnp.array([0.05]))
      >>> bool(end_window(state, classes, needed, 0.1, 1)[1])
      True
    """
    closed = close_window(exclusion, classes, needed, alpha, windows)
    changed = jnp.any(closed.excluded != exclusion.excluded)
    return closed, changed, jnp.sum(closed.excluded, dtype=jnp.int32)


def turn_over(
    state: Any,
    classes: Array,
    needed: Array,
    alpha: float,
    windows: int | None,
    window: int,
    keep: float,
) -> Any:
    """Close the window of a method's state and begin the next, of ``window`` steps.

    The state is a named tuple with ``step``, ``window_end``, ``exclusion``, ``excluded``, ``key`` and
    ``stream``; the stream is opened anew where examples left or returned. Other arguments: see
    ``close_window`` and ``in_play``.

    Example:
      >>> class State(NamedTuple):
      ...     step: int
      ...     window_end: int
      ...     exclusion: Exclusion
      ...     excluded: int
      ...     key: Array
      ...     stream: Any
      >>> seen = observe(init_exclusion(3), jnp.array([0]), jnp.array([0.05]))
      >>> state = State(4, 4, seen, 0, jax.random.key(0), None)
      >>> state = turn_over(state, jnp.zeros(3, int), jnp.array([1]), 0.1, 1, 4, 0.0)
      >>> state.excluded, state.window_end, state.stream.in_play
      (1, 8, 2)
    """
    exclusion, changed, excluded = end_window(state.exclusion, classes, needed, alpha, windows)
    state = state._replace(exclusion=exclusion, window_end=state.step + window)
    if not changed:
        return state
    key, stream_key = jax.random.split(state.key)
    active = partial(in_play, exclusion, keep)
    stream = open_stream(stream_key, classes, active, needed.shape[0])
    return state._replace(key=key, stream=stream, excluded=int(excluded))


def take_all_back(state: Any, classes: Array, num_classes: int, keep: float) -> Any:
    """Return the state of a method, as for ``turn_over``, with all examples in play and none seen.

    Example:
      >>> class State(NamedTuple):
      ...     exclusion: Exclusion
      ...     excluded: int
      ...     key: Array
      ...     stream: Any
      >>> out = Exclusion(jnp.zeros(3), jnp.array([0, 2, 2], jnp.int8))
      >>> state = take_all_back(State(out, 2, jax.random.key(0), None), jnp.zeros(3, int), 1, 0.0)
      >>> state.excluded, state.stream.in_play
      (0, 3)
    """
    key, stream_key = jax.random.split(state.key)
    exclusion = init_exclusion(len(classes))
    stream = open_stream(stream_key, classes, partial(in_play, exclusion, keep), num_classes)
    return state._replace(key=key, stream=stream, exclusion=exclusion, excluded=0)


def rows_needed(labels: np.ndarray, num_classes: int, size: int) -> Array:
    """Return the rows of each class [c] that a stratified draw of ``size`` out of all needs.

    Example:
      >>> rows_needed(np.array([0, 0, 0, 1]), 2, 2).tolist()
      [2, 1]
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
    return jnp.asarray(-(-size * counts // len(labels)), jnp.int32)
