"""What a greedy choice obeys beside a number of picks: weights, first picks, costs, an end."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from crest_jax.types import Array, ArrayLike

ROUNDING = 1e-6  # share of the largest objective by which float32 sums may miss it
BUDGET = 2**30  # units that a budget has where costs are not whole numbers
OVER = 2**9  # of them that rounding may add


class Rules(NamedTuple):
    """Rules of a choice; None: there is no such rule.

    Shapes are those of one pool of ``n`` clients and ``m`` candidates in ``c`` classes. Selection on
    stored similarities lays them out by group, [g, s] for what is [n] or [m] here and [g] for [c].

    Attributes:
      weights: [n], float32, how much each client counts.
      earlier: [n], float32, dissimilarity of each client to the nearest row of elsewhere.
      allowed: [m], bool, candidates that may be picked.
      first: [c, k], int32, places within the class of candidates that are picked first, in this order;
        -1 beyond their number.
      costs: [m], float32, what gains are divided by.
      units: [m], int32, what a candidate takes of the budget.
      budget: [], int32.
      least: [], float32, what a pick must gain, but for the first ones.
      share: [], float32, of the largest possible objective: the choice ends when it is reached.
      floor: [c], float32, see ``covered_share``; needed with ``share``.
    """

    weights: Array | None = None
    earlier: Array | None = None
    allowed: Array | None = None
    first: Array | None = None
    costs: Array | None = None
    units: Array | None = None
    budget: Array | None = None
    least: Array | None = None
    share: Array | None = None
    floor: Array | None = None

    @property
    def number(self) -> int:
        """Static length of ``first``."""
        return 0 if self.first is None else int(self.first.shape[-1])

    @property
    def binding(self) -> bool:
        """Whether they say more about picks than which candidates there are."""
        return not (self.first is None and self.units is None and self.least is None)

    def without_costs(self) -> "Rules":
        """Return the rules with gains that count whatever they cost; the budget holds."""
        return self._replace(costs=None if self.costs is None else jnp.ones_like(self.costs))

    def per_cost(self, gains: Array, candidates: Array | None = None) -> Array:
        """Return gains [b] of some candidates [b], or of all, divided by their costs."""
        if self.costs is None:
            return gains
        return gains / (self.costs if candidates is None else self.costs[candidates])

    def affordable(self, bounds: Array, left: Array) -> Array:
        """Return bounds [m], -1 where a candidate takes more units than are left."""
        return bounds if self.units is None else jnp.where(self.units > left, -1.0, bounds)

    def of_problem(self, p: int) -> "Rules":
        """Return the rules of one problem out of leaves [p, ...]."""
        whole = {"budget", "least", "share"}
        return Rules(**{k: v if v is None or k in whole else v[p] for k, v in self._asdict().items()})

    def of_class(self, index: Any, rows: Any, clients: Any, valid: Any) -> "Rules":
        """Return the rules of one class.

        Args:
          index: [], int32, the class.
          rows: [w], candidates in its window.
          clients: [v], clients in its window.
          valid: [v], bool, whether these are of the class.
        """

        def taken(leaf: Array | None, places: Any) -> Array | None:
            return None if leaf is None else leaf[places]

        weights = taken(self.weights, clients)
        return self._replace(
            weights=None if weights is None else jnp.where(valid, weights, 0.0),
            earlier=taken(self.earlier, clients),
            allowed=taken(self.allowed, rows),
            first=taken(self.first, index),
            costs=taken(self.costs, rows),
            units=taken(self.units, rows),
            floor=taken(self.floor, index),
        )

    def by_group(self, rows: Array, groups: int) -> "Rules":
        """Return rules of ``p`` pools, leaves [p, ...], laid out by group.

        Args:
          rows: [p, groups * s], int32, which row each member is.
          groups: static, of each pool.
        """

        def gathered(leaf: Array | None) -> Array | None:
            if leaf is None:
                return None
            return jnp.take_along_axis(leaf, rows, axis=1).reshape(len(rows) * groups, -1)

        first = None if self.first is None else self.first.reshape(-1, self.number)
        return self._replace(
            weights=gathered(self.weights),
            earlier=gathered(self.earlier),
            allowed=gathered(self.allowed),
            first=first,
            costs=gathered(self.costs),
            units=gathered(self.units),
        )

    def candidates(self) -> Array | None:
        """Return which members [g, s] of groups may be picked, or are among the first; None: all."""
        if self.allowed is None or self.first is None or not self.number:
            return self.allowed
        size = self.allowed.shape[1]
        places = jnp.where(self.first >= 0, self.first, size)
        groups = jnp.arange(len(places), dtype=jnp.int32)[:, None]
        return self.allowed.at[groups, places].set(True, mode="drop")


NO_RULES = Rules()


def enough(rules: Rules, cover: Array, weights: Array | None, top: Array) -> Array:
    """Return whether the share of the largest possible objective is reached, [...].

    Measured by what is left uncovered, which goes to 0 without rounding.

    Args:
      rules: with a share, and the floor [...].
      cover: [..., n], dissimilarity to the nearest pick, -inf for padding.
      weights: [..., n], or None.
      top: [...], dissimilarity at which the similarity is 0.

    Example:
      >>> rules = Rules(share=jnp.float32(0.5), floor=jnp.float32(0))
      >>> bool(enough(rules, jnp.array([2.0, 0.0]), None, jnp.float32(2)))
      True
    """
    assert rules.share is not None
    assert rules.floor is not None
    each = (cover > -jnp.inf).astype(jnp.float32)
    each = each if weights is None else each * weights
    left = jnp.sum(each * jnp.maximum(cover, jnp.finfo(jnp.float32).min), axis=-1)
    whole = top * jnp.sum(each, axis=-1)
    return left <= whole - (rules.share - ROUNDING) * (whole - rules.floor)


def decided(
    rules: Rules, gains: Array, picks: Array, free: Array, left: Array, turn: Array
) -> tuple[Array, Array]:
    """Return the picks [g] of a round in groups, and which of them are taken [g].

    Args:
      rules: laid out by group.
      gains: [g, s].
      picks: [g], the best candidates.
      free: [g, s], bool, which candidates could be picked.
      left: [g], int32, units of the budget.
      turn: [], int32, the round.
    """
    forced = jnp.zeros(picks.shape, bool)
    if rules.first is not None and rules.number:
        given = rules.first[:, jnp.minimum(turn, rules.number - 1)]
        forced = (turn < rules.number) & (given >= 0)
        picks = jnp.where(forced, given, picks)

    def at_pick(values: Array) -> Array:
        return jnp.take_along_axis(values, picks[:, None], axis=1)[:, 0]

    taken = at_pick(free)
    if rules.units is not None:
        taken &= at_pick(rules.units) <= left
    if rules.least is not None:
        taken &= at_pick(gains) >= rules.least
    return picks, taken | forced


def spent(rules: Rules, picks: Array, taken: Array, left: Array) -> Array:
    """Return the units [g] of the budget that are left after a round in groups."""
    if rules.units is None:
        return left
    return left - jnp.where(taken, jnp.take_along_axis(rules.units, picks[:, None], axis=1)[:, 0], 0)


def budget_units(costs: ArrayLike, budget: float) -> tuple[Array, Array]:
    """Return costs [m] and budget [] in whole units, whose sums int32 holds exactly.

    Whole numbers are their own units. Others are rounded to 2^-30 of the budget, and sums that exceed
    it by less than a millionth count as within it, as 0.1 + 0.2 is within 0.3. Costs above the budget
    become one unit more than it.

    Example:
      >>> [x.tolist() for x in budget_units([1, 2, 9], 3)]
      [[1, 2, 4], 3]
    """
    each = np.asarray(costs, np.float64)
    if (each == np.floor(each)).all() and min(budget, each.sum()) < 2**31 - 1:
        whole = int(np.floor(min(budget, each.sum())))
    else:
        each, whole = np.round(each / budget * BUDGET), BUDGET + OVER
    return jnp.asarray(np.minimum(each, whole + 1), jnp.int32), jnp.asarray(whole, jnp.int32)
