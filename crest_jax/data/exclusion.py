"""Examples that are already learned are excluded from the draws for a while, all or most of them."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.types import Array

MOST_OBSERVATIONS = 2**24  # held of a window, 64 MB
_EMPTY = np.uint32(2**32 - 1)


@dataclasses.dataclass(frozen=True)
class ExclusionConfig:
    """Which examples count as learned, and what becomes of them.

    Attributes:
      threshold: alpha, the loss under which an example counts as learned, above 0.
      window: T2, optimizer steps of a window. An example that was observed in it, and always below the
        threshold, is excluded at its end. Of a very long one the newest 16 million observations count.
      cooldown: windows that an excluded example stays out before it returns, 1 to 127. None: until its
        class runs dry, as in the paper; long runs then forget what they no longer see.
      keep_fraction: share of the excluded examples that is drawn all the same, others in every window,
        each with weight one over the share, so that together they weigh in the mean gradient what all
        excluded ones would, less 1 to 3 % (see ``importance_weights``). 0 leaves all out, as in the
        paper; trainings of many passes suffer from that.
      until: step from which on all examples are active. Leaving out what is learned can overfit the
        rest once the learning rate has dropped. None: exclusion to the end.
      relative: whether the threshold is in units of the loss at the start, the mean of the first losses
        observed, which suits losses of any scale: the threshold of 0.02 of the cross-entropy of ten
        classes is about 0.01 of its loss at the start. Set both: ``dataclasses.replace(config,
        relative=True, threshold=0.01)``.

    Raises:
      ValueError: at construction, when a value breaks its rule.

    Example:
      >>> ExclusionConfig.recommended().cooldown
      4
    """

    threshold: float
    window: int
    cooldown: int | None
    keep_fraction: float
    until: int | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        _checks.in_range("threshold", self.threshold, 0.0, 1e6, open_low=True)
        _checks.positive_int("window", self.window)
        _checks.window_count("cooldown", self.cooldown)
        _checks.in_range("keep_fraction", self.keep_fraction, 0.0, 1.0)
        if self.until is not None:
            _checks.positive_int("until", self.until)
        _checks.require(
            isinstance(self.relative, bool),
            f"relative is {_checks.brief(self.relative)} but must be True or False; choose one.",
        )

    @classmethod
    def recommended(cls, *, window: int = 100, until: int | None = None) -> "ExclusionConfig":
        """Exclude below a loss of 0.02, keep a quarter, return after four windows.

        The paper's threshold of 0.1 suits long training; in runs of few passes it takes examples out
        too early.

        Args:
          window: steps of a window.
          until: step from which on all examples are active: the first drop of the learning rate in
            trainings of more than ten passes, None in shorter ones.

        Example:
          >>> ExclusionConfig.recommended(window=50).window
          50
        """
        return cls(threshold=0.02, window=window, cooldown=4, keep_fraction=0.25, until=until)

    @classmethod
    def paper(cls, *, window: int = 400) -> "ExclusionConfig":
        """Exclude below a loss of 0.1, for good (Yang, Kang and Mirzasoleiman, ICML 2023, Section 5).

        Args:
          window: T2 in steps; the public code looks every 20 epochs of its budget.

        Example:
          >>> ExclusionConfig.paper().keep_fraction
          0.0
        """
        return cls(threshold=0.1, window=window, cooldown=None, keep_fraction=0.0)


def share_drawn(exclusion: ExclusionConfig | None) -> float:
    """Return the share of the excluded examples that is drawn all the same.

    Example:
      >>> share_drawn(None), share_drawn(ExclusionConfig.recommended())
      (0.0, 0.25)
    """
    return 0.0 if exclusion is None else exclusion.keep_fraction


class Inactive(NamedTuple):
    """The excluded examples.

    Attributes:
      left_at: [n], int8: above 0 where an example is excluded.
      counts: [c], int32: excluded examples of each class.
    """

    left_at: Array
    counts: Array


class Exclusion(NamedTuple):
    """Who is excluded, and what was observed in the current window: one byte an example.

    What is observed goes into a list of fixed length, not into arrays of all examples, so that a step
    costs the same for any number of them.

    Attributes:
      observations: [k], uint32: twice the row, plus one where its loss was low; the newest k.
      num_observations: [], int32: in this window.
      unit: [], float32, what the threshold is multiplied by; below 0 until it is known.
      all_finite: [], bool: all losses that were handed back in this window were finite.
      slot: [], int32: windows closed so far, modulo the cooldown.
      left_per_slot: [w, c], int32: examples of each class that were excluded at each slot and still
        are.
      inactive: who is excluded, and how many of each class.
    """

    observations: Array
    num_observations: Array
    unit: Array
    all_finite: Array
    slot: Array
    left_per_slot: Array
    inactive: Inactive

    @property
    def excluded(self) -> Array:
        """Whether each example is excluded, [n], bool."""
        return self.inactive.left_at > 0


def init_exclusion(
    count: int,
    num_classes: int,
    *,
    capacity: int,
    cooldown: int | None = None,
    relative: bool = False,
) -> Exclusion:
    """Return the state for ``count`` examples, all active.

    Args:
      count: n, at most ``2**31 - 1``.
      num_classes: c.
      capacity: observations in a window that are remembered; of more, the oldest are forgotten.
      cooldown: windows that an example stays out, 1 to 127; None: until its class runs dry.
      relative: see ``ExclusionConfig``.

    Example:
      >>> init_exclusion(2, 1, capacity=4).excluded.tolist()
      [False, False]
    """
    return Exclusion(
        jnp.full(capacity, _EMPTY, jnp.uint32),
        jnp.zeros((), jnp.int32),
        jnp.full((), -1.0 if relative else 1.0, jnp.float32),
        jnp.ones((), bool),
        jnp.zeros((), jnp.int32),
        jnp.zeros((cooldown or 1, num_classes), jnp.int32),
        Inactive(jnp.zeros(count, jnp.int8), jnp.zeros(num_classes, jnp.int32)),
    )


class Noted(NamedTuple):
    """What of a state an observation changes.

    Attributes:
      observations: as in ``Exclusion``.
      num_observations: as in ``Exclusion``.
      unit: as in ``Exclusion``.
    """

    observations: Array
    num_observations: Array
    unit: Array


def noted_in(exclusion: Exclusion) -> Noted:
    """Return what of a state an observation changes.

    Example:
      >>> int(noted_in(init_exclusion(3, 1, capacity=4)).num_observations)
      0
    """
    return Noted(exclusion.observations, exclusion.num_observations, exclusion.unit)


def observe(
    noted: Noted,
    indices: Array,
    losses: Array,
    threshold: float,
    number: Array | int | None = None,
) -> Noted:
    """Note whether the losses [b] at ``indices`` [b] are below the threshold.

    Indices may repeat; only the first ``number`` count, where it is given. The mean of the first losses
    of all is the unit of a relative threshold; while it is negative none is below.

    Example:
      >>> noted = noted_in(init_exclusion(3, 1, capacity=4))
      >>> observe(noted, jnp.array([0, 2]), jnp.array([0.5, 0.05]), 0.1).observations[:2].tolist()
      [0, 5]
    """
    losses = losses.astype(jnp.float32)
    size, turn = noted.observations.shape[0], jnp.arange(indices.shape[0])
    number = indices.shape[0] if number is None else number
    counts = turn < number
    total = jnp.sum(jnp.where(counts, losses, 0.0))
    mean = total / jnp.maximum(number, 1).astype(jnp.float32)
    unit = jnp.where((noted.unit < 0) & (mean >= 0), mean, noted.unit)
    low = (losses < jnp.float32(threshold) * unit) & (unit >= 0)
    places = jnp.where(counts, (noted.num_observations + turn) % size, size)
    entries = 2 * indices.astype(jnp.uint32) + low.astype(jnp.uint32)
    observations = noted.observations.at[places].set(entries, mode="drop")
    return Noted(observations, noted.num_observations + number, unit)


def close_window(
    exclusion: Exclusion, classes: Array, sizes: Array, needed: Array, cooldown: int | None = None
) -> Exclusion:
    """End a window: learned examples are excluded; those whose cooldown is over return.

    An example is excluded when it was observed at least once in the window and its loss was low at
    every observation (Yang, Kang and Mirzasoleiman, ICML 2023, Section 4). It returns after
    ``cooldown`` further windows, and must be observed to be learned again before it is excluded again:
    a network forgets what it no longer sees. When fewer than ``needed[c]`` examples of class ``c``
    would stay active, all of class ``c`` return at once. A new window begins with nothing observed.

    Args:
      exclusion: state.
      classes: [n], integers.
      sizes: [c], int32, examples of each class.
      needed: [c], int32, examples of each class that a stratified draw needs.
      cooldown: static, as in ``init_exclusion``.

    Example:
      >>> classes, sizes, needed = jnp.zeros(3, int), jnp.array([3]), jnp.array([1])
      >>> state = init_exclusion(3, 1, capacity=4, cooldown=1)
      >>> state = observe_losses(state, jnp.array([0, 1]), jnp.array([0.05, 0.5]), 0.1)
      >>> state = close_window(state, classes, sizes, needed, cooldown=1)
      >>> state.excluded.tolist(), state.inactive.counts.tolist()
      ([True, False, False], [1])
      >>> close_window(state, classes, sizes, needed, cooldown=1).excluded.tolist()
      [False, False, False]
    """
    (left_at, counts), per_slot, slot = exclusion.inactive, exclusion.left_per_slot, exclusion.slot
    stamp = (slot + 1).astype(jnp.int8)
    if cooldown is not None:
        left_at = jnp.where(left_at == stamp, jnp.int8(0), left_at)
        counts = counts - per_slot[slot]
        per_slot = per_slot.at[slot].set(0)
    rows, learned = _learned(exclusion.observations, left_at.shape[0])
    before = left_at.at[rows].get(mode="clip").astype(jnp.int32)
    own = classes.at[rows].get(mode="clip").astype(jnp.int32)
    was_out = learned * (before > 0).astype(jnp.int32)
    counts = counts.at[own].add(learned - was_out)
    per_slot = per_slot.at[jnp.maximum(before - 1, 0), own].add(-was_out)
    per_slot = per_slot.at[slot, own].add(learned)
    left_at = left_at.at[rows].set(stamp, mode="drop")
    dry = sizes - counts < needed
    left_at = jax.lax.cond(
        jnp.any(dry), lambda: jnp.where(dry[classes], jnp.int8(0), left_at), lambda: left_at
    )
    return Exclusion(
        observations=jnp.full_like(exclusion.observations, _EMPTY),
        num_observations=jnp.zeros_like(exclusion.num_observations),
        unit=exclusion.unit,
        all_finite=jnp.ones_like(exclusion.all_finite),
        slot=(slot + 1) % per_slot.shape[0],
        left_per_slot=jnp.where(dry[None, :], 0, per_slot),
        inactive=Inactive(left_at, jnp.where(dry, 0, counts)),
    )


def _learned(observations: Array, count: int) -> tuple[Array, Array]:
    """Return the indices [k] whose losses all were low, once each, and ones [k] there.

    Elsewhere the index is ``count`` and the one a zero.
    """
    noted = jnp.sort(observations)  # observations of an example together, those of a high loss first
    rows = noted >> 1
    first = jnp.concatenate([jnp.ones(1, bool), rows[1:] != rows[:-1]])
    learned = first & (noted & 1 == 1) & (noted != _EMPTY)
    return jnp.where(learned, rows, count).astype(jnp.int32), learned.astype(jnp.int32)


@partial(jax.jit, static_argnames="keep")
def importance_weights(left_at: Array, indices: Array, keep: float) -> Array:
    """Return how many examples each of the indices [...] drawn stands for, float32.

    The paper leaves learned examples out, which biases the gradient: a long training forgets them.
    Kept at a rate (``sampler.rearranged``), and weighted by one over it, they cost little, and on
    average the weights of a mini-batch add up as if all examples were active (Qin et al., "InfoBatch:
    Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024, Section 3).

    The loss of a step is divided by the sum of its weights, though, and the more learned examples a
    mini-batch happens to hold, the larger that is. So on average they weigh a little too little in the
    gradient: with ``a = 1 / keep``, ``m`` examples in a mini-batch and ``p`` the mean share of learned
    ones among them, by a part of about ``(a - 1) (1 - p) / (1 + (a - 1) p)^2 / m``. For ``keep`` of 1/4
    and ``m`` of 128 that is 0.7 % where half of all examples are learned, and 2.3 % where few are.

    Args:
      left_at: [n], above 0 where an example is excluded.
      indices: positions in the data set.
      keep: static, share of the excluded examples that is drawn all the same, in [0, 1].

    Example:
      >>> importance_weights(jnp.array([0, 1], jnp.int8), jnp.array([0, 1]), 0.25).tolist()
      [1.0, 4.0]
    """
    if keep == 0:
        return jnp.ones(indices.shape, jnp.float32)
    return jnp.where(left_at[indices] > 0, jnp.float32(1 / keep), jnp.float32(1))


@jax.jit
def handed_back(
    noted: Noted, all_finite: Array, indices: Array, losses: Array, threshold: float
) -> tuple[Noted, Array]:
    """Note the losses [b] of a training step, and whether all so far were finite [].

    Example:
      >>> noted, finite = noted_in(init_exclusion(2, 1, capacity=2)), jnp.array(True)
      >>> bool(handed_back(noted, finite, jnp.array([1]), jnp.array([jnp.nan]), 0.1)[1])
      False
    """
    finite = all_finite & jnp.all(jnp.isfinite(losses))
    return observe(noted, indices, losses, threshold), finite


def observe_losses(exclusion: Exclusion, indices: Array, losses: Any, threshold: float) -> Exclusion:
    """Note the losses [b] observed at ``indices`` [b], compiled; see ``observe``.

    A loss that is NaN or infinite counts as high, and is told by ``pool.close``: here nothing is read.

    Raises:
      ValueError: when the losses are no floating-point numbers [b].

    Example:
      >>> state = init_exclusion(2, 1, capacity=2)
      >>> int(observe_losses(state, jnp.array([1]), jnp.array([0.5]), 0.1).num_observations)
      1
    """
    losses = _checks.handed_back(losses, indices)
    noted, finite = handed_back(noted_in(exclusion), exclusion.all_finite, indices, losses, threshold)
    return exclusion._replace(**noted._asdict(), all_finite=finite)


@jax.jit
def all_active(exclusion: Exclusion) -> Exclusion:
    """Return the state with all examples active and nothing observed.

    Example:
      >>> some = init_exclusion(3, 1, capacity=2)
      >>> some = some._replace(inactive=some.inactive._replace(counts=jnp.array([2])))
      >>> all_active(some).inactive.counts.tolist()
      [0]
    """
    empty = jnp.full_like(exclusion.observations, _EMPTY)
    return jax.tree.map(jnp.zeros_like, exclusion)._replace(
        observations=empty, unit=exclusion.unit, all_finite=jnp.ones_like(exclusion.all_finite)
    )
