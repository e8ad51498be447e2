"""The frame that chunks of a stream, or shares of several devices, are read in."""

import math

import numpy as np

from crest_jax import _checks
from crest_jax.coresets.inputs import Pool
from crest_jax.coresets.metrics import ROOM, Metric, Points, bounded_share, exponential_scale, rbf_scale
from crest_jax.coresets.numbers import (
    exponents_of,
    far_middle,
    fits_float32,
    float64,
    largest_of,
    less_their_mean,
    moved_by,
    unit_rows,
)


class Frame:
    """The shift and the scale that all rows of a stream share; its first rows decide.

    Example:
      >>> frame = Frame("euclidean")
      >>> frame.points(np.array([[1e9], [1e9 + 1]]), 0).parts[0].tolist()
      [[-0.5], [0.5]]
    """

    def __init__(self, metric: str, gamma: float | None = None) -> None:
        """Begin with no rows."""
        self._name, self._gamma = metric, gamma
        self._shift: np.ndarray | None = None  # [1, d]
        self._exponent: int | None = None
        self._columns = 1

    @property
    def metric(self) -> Metric:
        """The metric of the points."""
        factor = 2.0 ** min(self._exponent or 0, 127)
        if self._name == "exponential":
            return Metric(self._name, exponential_scale(self._columns, factor))
        if self._name == "rbf":
            return Metric(self._name, rbf_scale(self._gamma, self._columns, factor))
        return Metric("cosine" if self._angles else self._name, 1.0)

    @property
    def _angles(self) -> bool:
        """Whether only the directions of rows count."""
        return self._name in ("cosine", "correlation")

    @property
    def _power(self) -> int:
        """How often the scale multiplies a dissimilarity."""
        return {"euclidean": 1, "manhattan": 1, "sqeuclidean": 2, "dot": 2}.get(self._name, 0)

    def pool(self) -> Pool:
        """Return a pool without points, for ``restored``."""
        exponent, metric = self._exponent or 0, self.metric
        share = bounded_share(metric, self._gamma, self._columns, exponent)
        return Pool(Points(()), metric, np.array([self._power * exponent]), False, share)

    def points(self, rows: np.ndarray, first: int) -> Points:
        """Return rows [b, d], of which ``first`` came before, as points (NumPy arrays).

        Raises:
          ValueError: on NaN or infinite values, and on rows far longer than the first ones.
        """
        rows, self._columns = np.asarray(rows), rows.shape[1]
        given, largest, numbers = rows, float(largest_of(rows, batched=False)[0]), None
        if self._angles:
            rows, zeros = unit_rows(less_their_mean(rows) if self._name == "correlation" else rows)
            numbers = np.where(zeros, first + 1 + np.arange(len(rows)), 0).astype(np.int32)
        if self._shift is None:
            plain = self._name == "dot" or (not self._angles and fits_float32(rows, largest))
            self._shift = np.zeros((1, rows.shape[1])) if plain else far_middle(rows)
        if self._shift.any():
            rows = moved_by(rows, self._shift)
        if rows is not given:
            largest = float(largest_of(rows, batched=False)[0])
        return Points((self._scaled(rows, largest, f"the rows after {first} others"),), numbers)

    def _scaled(self, rows: np.ndarray, largest: float, what: str) -> np.ndarray:
        if self._exponent is None and largest > 0:
            power = 0 if self._angles else exponents_of(np.array([[largest]]))[0, 0]
            self._exponent = int(power)
        _checks.require(
            np.frexp(largest)[1] + (self._exponent or 0) <= 2 * ROOM,
            f"{what} reach {largest:g} but the first ones are smaller by a factor of 2^{ROOM}, so "
            "that float32 cannot hold both; give larger rows first, or divide the outliers.",
        )
        if not self._exponent:
            return rows.astype(np.float32)
        return np.ldexp(float64(rows), self._exponent).astype(np.float32)

    def facts(self) -> np.ndarray:
        """Return shift and exponent [d + 1] for other processes; NaN is an exponent not known yet."""
        assert self._shift is not None
        exponent = math.nan if self._exponent is None else self._exponent
        return np.append(self._shift[0].astype(np.float64), exponent)

    def common(self, facts: np.ndarray) -> "Frame":
        """Return the frame that all processes take, from the facts [p, d + 1] of each."""
        known = np.flatnonzero(~np.isnan(facts[:, -1]))
        chosen = facts[known[0] if len(known) else 0]
        frame = Frame(self._name, self._gamma)
        frame._shift, frame._columns = chosen[None, :-1], self._columns
        frame._exponent = None if np.isnan(chosen[-1]) else int(chosen[-1])
        return frame

    def moved(self, points: Points, frame: "Frame", first: int) -> Points:
        """Return points of this frame in another one, ``first`` rows later.

        Raises:
          ValueError: when they do not fit there.
        """
        assert self._shift is not None
        assert frame._shift is not None
        blank = points.blank
        if blank is not None:
            blank = np.where(blank > 0, blank + first, 0).astype(np.int32)
        (rows,) = points.parts
        if self._exponent != frame._exponent or (self._shift != frame._shift).any():
            wide = np.ldexp(rows.astype(np.float64), -(self._exponent or 0))
            wide = wide + (self._shift - frame._shift)
            largest = float(largest_of(wide, batched=False)[0])
            rows = frame._scaled(wide, largest, "the rows of a process")
        return Points((rows,), blank)

    def moved_value(self, value: float, frame: "Frame") -> float:
        """Return a dissimilarity of this frame in another one."""
        return float(np.ldexp(value, self._power * ((frame._exponent or 0) - (self._exponent or 0))))
