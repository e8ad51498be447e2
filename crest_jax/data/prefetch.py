"""Fetching the next rows while the device trains."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from crest_jax.data.sampler import RowStream
from crest_jax.types import Array, Source

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
      >>> import jax.numpy as jnp
      >>> nth_row(jnp.eye(2), jnp.ones((2, 2)), np.int32(1))[0].tolist()
      [0.0, 1.0]
    """
    return rows[index], weights[index]
