"""Examples that are already learned leave the selection pool, and return when it runs dry."""

from typing import NamedTuple

import jax.numpy as jnp

from crest_jax.types import Array


class Exclusion(NamedTuple):
    """What is known of each example's loss in the current window: 5 bytes an example."""

    highest: Array  # [n], float32: highest loss seen in this window, -inf where not seen
    excluded: Array  # [n], bool


def init_exclusion(count: int) -> Exclusion:
    """Return the state for ``count`` examples, all in play.

    Example:
      >>> init_exclusion(2).excluded.tolist()
      [False, False]
    """
    return Exclusion(jnp.full(count, -jnp.inf, jnp.float32), jnp.zeros(count, bool))


def observe(exclusion: Exclusion, rows: Array, losses: Array) -> Exclusion:
    """Record the losses [b] seen at ``rows`` [b]; rows may repeat.

    Example:
      >>> observe(init_exclusion(2), jnp.array([1]), jnp.array([0.5])).highest.tolist()
      [-inf, 0.5]
    """
    return exclusion._replace(highest=exclusion.highest.at[rows].max(losses))


def close_window(exclusion: Exclusion, classes: Array, needed: Array, alpha: float) -> Exclusion:
    """End a window: learned examples leave, and classes that would run dry get theirs back.

    An example leaves when it was seen at least once in the window and its loss was below ``alpha`` at
    every sighting (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4). When fewer than
    ``needed[c]`` examples of class ``c`` would stay in play, all of class ``c`` return. A new window
    begins with nothing seen.

    Args:
      exclusion: state.
      classes: [n], int32.
      needed: [c], int32, examples of each class that a stratified draw needs.
      alpha: threshold on the loss.

    Example:
      >>> state = observe(init_exclusion(3), jnp.array([0, 1]), jnp.array([0.05, 0.5]))
      >>> close_window(state, jnp.zeros(3, int), jnp.array([1]), 0.1).excluded.tolist()
      [True, False, False]
    """
    seen = exclusion.highest > -jnp.inf
    excluded = exclusion.excluded | (seen & (exclusion.highest < alpha))
    num_classes = needed.shape[0]
    in_play = jnp.bincount(classes, weights=(~excluded).astype(jnp.int32), length=num_classes)
    dry = in_play < needed
    return init_exclusion(classes.shape[0])._replace(excluded=excluded & ~dry[classes])
