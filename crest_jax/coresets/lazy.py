"""Exact greedy facility location in memory linear in the data, as one compiled program.

Lazy greedy (Minoux, Optimization Techniques 1978) keeps an old gain of every candidate, which
submodularity makes an upper bound, and evaluates again only candidates near the top. Three things make
it fit an accelerator:

* Candidates lie in blocks of 64 whose largest bounds are kept, so that finding the best few touches a
  few short rows. One round evaluates the best candidate of the best block in each of several strips.
* Bounds come from matrix products (an upper bound, see ``sums.lower``); only the best
  candidate of a round is evaluated by direct differences. A pick is taken when its exact gain is at
  least every other bound, the lowest row on a tie.
* After a few picks a candidate can only improve the few rows that it is nearer to than their nearest
  pick. Once those pairs fit the memory allowed, all are found in one pass and kept, with exact
  dissimilarities, and the rest of the run reads nothing else.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.lists import WINDOW, Lists, build, window
from crest_jax.coresets.oracles import BLOCK, Oracle, gains_of
from crest_jax.coresets.rules import NO_RULES, Rules, enough
from crest_jax.coresets.run import Run
from crest_jax.types import Array

STRIPS = 32  # candidates evaluated in one round before the lists, the number of strips of blocks
LISTED_STRIPS = 8  # the same with lists
SAMPLE = 128  # candidates that tell how long the lists would be


def lazy_greedy(
    oracle: Oracle,
    selectable: Array,
    quota: Array,
    size: int,
    capacity: int,
    rules: Rules = NO_RULES,
) -> Run:
    """Choose ``quota`` candidates one by one, each with the largest gain; the lowest row on a tie.

    Args:
      oracle: dissimilarities of ``m`` candidates (whole blocks) to ``n`` clients.
      selectable: [m], bool, the candidates that may be picked.
      quota: [], int32, picks wanted, at most ``size`` and at most the number selectable.
      size: static length of the results.
      capacity: static length of the lists, 8 bytes each; 0 never builds them.
      rules: of this class; the oracle holds the weights and what lies elsewhere.

    Returns:
      The finished ``Run``; places beyond ``taken`` are 0.
    """
    total = selectable.shape[0]
    choose = _pick_one(_computed_round(oracle, rules), computed_cover(oracle), oracle.weights, rules)

    def refresh(run: Run) -> Run:
        bounds = rules.per_cost(oracle.all_bounds(run.cover))
        bounds = jnp.where(run.bounds < 0, -1.0, bounds)
        return run._replace(
            bounds=bounds, best=_best_of_blocks(bounds), evaluations=run.evaluations + total
        )

    def computed(run: Run) -> Run:
        # The second pick's gains have little to do with the first one's: evaluate all once more.
        return choose(jax.lax.cond(run.taken == 1, refresh, lambda run: run, run))

    sample = jnp.asarray(np.linspace(0, total, SAMPLE, endpoint=False), jnp.int32)

    def stage(state: tuple[Run, Array]) -> tuple[Run, Array]:
        run, target = state
        run = jax.lax.while_loop(lambda run: run.taken < jnp.minimum(target, run.quota), computed, run)
        if capacity == 0:
            return run, quota
        counts = jax.lax.population_count(oracle.closer(sample, run.cover)).astype(jnp.int32)
        counts = jnp.where((run.bounds[sample] >= 0)[:, None], counts, 0)
        expected = jnp.sum(counts, dtype=jnp.float32) * (total / SAMPLE)
        affordable = (expected < 0.9 * capacity) & (run.taken < run.quota)
        finish = partial(_listed, oracle, capacity=capacity, rules=rules)
        run = jax.lax.cond(affordable, finish, lambda run: run, run)
        return run, jnp.minimum(target + target // 4 + 1, quota)

    run = begun(first_run(*oracle.start(), selectable, quota, size, rules), oracle, rules)
    target = jnp.int32(4)
    if rules.number:
        # With one first pick the second one's bounds are computed anew anyway.
        run = jax.lax.cond(run.taken > 1, refresh, lambda run: run, run)
        target = jnp.maximum(target, run.taken)
    start = (run, jnp.minimum(target, quota))
    return jax.lax.while_loop(lambda state: state[0].taken < state[0].quota, stage, start)[0]


def _best_of_blocks(bounds: Array) -> Array:
    return jnp.max(bounds.reshape(-1, BLOCK), axis=1)


def _top(run: Run) -> Array:
    """Return the candidate with the largest bound, the lowest on a tie."""
    block = first_largest(run.best)
    inside = jax.lax.dynamic_slice(run.bounds, (block * BLOCK,), (BLOCK,))
    return block * BLOCK + first_largest(inside)


class _Candidates(NamedTuple):
    rows: Array  # [b]
    blocks: Array  # [b], all different
    places: Array  # [b], place of the row in its block
    values: Array  # [b, BLOCK], bounds of the whole block
    old: Array  # [b], bounds of the rows


def _candidates(run: Run, strips: int) -> _Candidates:
    """Return the best candidate of the best block in each of several strips of blocks.

    The largest of all bounds is among them.
    """
    count = run.best.shape[0]
    strips = min(strips, count)
    length = -(-count // strips)
    short = jnp.pad(run.best, (0, strips * length - count), constant_values=-2.0)
    # Strip s holds blocks s, s + strips, ...: each has at least one real block.
    in_strip = first_largest(short.reshape(length, strips).T)
    blocks = in_strip * strips + jnp.arange(strips, dtype=jnp.int32)
    values = run.bounds.reshape(count, BLOCK)[blocks]
    places = first_largest(values)
    old = jnp.max(values, axis=1)
    return _Candidates((blocks * BLOCK + places).astype(jnp.int32), blocks, places, values, old)


def _evaluated(run: Run, found: _Candidates, new: Array, fresh: Array) -> Run:
    """Put new bounds [b] in place; those ``fresh`` are exact gains now."""
    here = jnp.arange(BLOCK)[None, :] == found.places[:, None]
    values = jnp.where(here, new[:, None], found.values)
    stamp = jnp.where(fresh, run.taken, run.stamp[found.rows])
    return run._replace(
        bounds=run.bounds.at[found.rows].set(new),
        best=run.best.at[found.blocks].set(jnp.max(values, axis=1)),
        stamp=run.stamp.at[found.rows].set(stamp),
    )


def _computed_round(oracle: Oracle, rules: Rules) -> Callable[[Run], Run]:
    def round_(run: Run) -> Run:
        found = _candidates(run, STRIPS)
        known = (run.stamp[found.rows] == run.taken) | (found.old <= 0)
        bounds = rules.per_cost(oracle.bounds(found.rows, run.cover), found.rows)
        bounds = jnp.minimum(found.old, bounds)
        bounds = jnp.where(known, found.old, bounds)
        chosen = first_largest(jnp.where(known, -1.0, bounds))
        row = found.rows[chosen]
        gain = rules.per_cost(exact_gain(oracle, row, run.cover), row)
        # When every candidate of the round is known there is nothing to evaluate.
        gain = jnp.where(known[chosen], found.old[chosen], gain)
        new = bounds.at[chosen].set(gain)
        fresh = known | (jnp.arange(len(bounds)) == chosen)
        run = run._replace(evaluations=run.evaluations + len(bounds) + 1)
        return _evaluated(run, found, new, fresh)

    return round_


def exact_gain(oracle: Oracle, row: Array, cover: Array) -> Array:
    """Return the gain [] of a candidate, by direct differences."""
    return gains_of(cover, oracle.exact(row)[None, :], oracle.weights)[0]


def computed_cover(oracle: Oracle) -> Callable[[Run, Array], tuple[Array, Array]]:
    """Return the update of cover [c] and nearest pick [c] by a pick, its distances computed anew."""

    def update(run: Run, pick: Array) -> tuple[Array, Array]:
        values = oracle.exact(pick)
        closer = values < run.cover
        # Whatever the distance, a client belongs to the first pick before it belongs to another,
        # unless it belongs to a row of elsewhere.
        unowned = run.taken == 0
        if oracle.begun:
            unowned &= run.cover >= run.top
        owned = closer | unowned
        return jnp.where(closer, values, run.cover), jnp.where(owned, run.taken, run.nearest)

    return update


def _pick_one(
    round_: Callable[[Run], Run],
    update: Callable[[Run, Array], tuple[Array, Array]],
    weights: Array | None,
    rules: Rules,
) -> Callable[[Run], Run]:
    def settled(run: Run) -> Array:
        # A bound of 0 is exact, for no gain is negative.
        top = _top(run)
        return (run.stamp[top] == run.taken) | (run.bounds[top] <= 0)

    def pick(run: Run) -> Run:
        run = jax.lax.while_loop(lambda run: ~settled(run), round_, run)
        top = _top(run)
        gain = run.bounds[top] if rules.costs is None else run.bounds[top] * rules.costs[top]

        def take(run: Run) -> Run:
            run = taken_into(run, top, gain, update(run, top), rules)
            return ended(run, weights, rules)

        if rules.least is None:
            return take(run)
        stop = gain < rules.least
        return jax.lax.cond(stop, lambda run: run._replace(quota=run.taken), take, run)

    return pick


def taken_into(
    run: Run, row: Array, gain: Array, covered: tuple[Array, Array], rules: Rules = NO_RULES
) -> Run:
    """Return the run with one more pick, whose cover and nearest picks are given."""
    bounds, left = run.bounds.at[row].set(-1.0), run.left
    if rules.units is None:
        block = row // BLOCK
        inside = jax.lax.dynamic_slice(bounds, (block * BLOCK,), (BLOCK,))
        best = run.best.at[block].set(jnp.max(inside))
    else:
        left = left - rules.units[row]
        bounds = rules.affordable(bounds, left)
        best = _best_of_blocks(bounds)
    return run._replace(
        cover=covered[0],
        nearest=covered[1],
        bounds=bounds,
        best=best,
        picks=run.picks.at[run.taken].set(row),
        gains=run.gains.at[run.taken].set(gain),
        taken=run.taken + 1,
        left=left,
    )


def ended(run: Run, weights: Array | None, rules: Rules) -> Run:
    """Return the run with its quota lowered to what it has where that is enough."""
    if rules.share is None:
        return run
    over = enough(rules, run.cover, weights, run.top)
    return run._replace(quota=jnp.where(over, run.taken, run.quota))


def begun(run: Run, oracle: Oracle, rules: Rules) -> Run:
    """Take the first picks of the rules."""

    def gain_of(row: Array, cover: Array) -> Array:
        return exact_gain(oracle, row, cover)

    return _begun(run, gain_of, computed_cover(oracle), oracle.weights, rules)


def _begun(
    run: Run,
    gain_of: Callable[[Array, Array], Array],
    update: Callable[[Run, Array], tuple[Array, Array]],
    weights: Array | None,
    rules: Rules,
) -> Run:
    if rules.first is not None and rules.number:
        first = rules.first

        def take(run: Run) -> Run:
            row = first[run.taken]
            return taken_into(run, row, gain_of(row, run.cover), update(run, row), rules)

        count = jnp.sum(first >= 0, dtype=jnp.int32)
        run = jax.lax.while_loop(lambda run: run.taken < count, take, run)
    return ended(run, weights, rules)


def _listed(oracle: Oracle, run: Run, capacity: int, rules: Rules) -> Run:
    """Build the lists and finish with them; if they do not fit after all, return the run as it was."""
    entries, lists = build(oracle, run, capacity)

    def go(run: Run) -> Run:
        return _finished(lists, run._replace(entries=entries), oracle.weights, rules)

    run = run._replace(evaluations=run.evaluations + run.bounds.shape[0])
    return jax.lax.cond(entries <= capacity, go, lambda run: run, run)


def _finished(lists: Lists, run: Run, weights: Array | None, rules: Rules) -> Run:
    """Choose until the quota is met, with all that candidates can still improve in lists."""
    update = _listed_cover(lists)
    finish = _pick_one(_listed_round(lists, weights, rules), update, weights, rules)
    return jax.lax.while_loop(lambda run: run.taken < run.quota, finish, run)


def lazy_greedy_on_lists(lists: Lists, run: Run, weights: Array | None, rules: Rules) -> Run:
    """Choose from lists alone; see ``lazy_greedy``.

    Args:
      lists: what each of ``m`` candidates is similar to.
      run: from ``first_run``; its bounds are the gains of first picks.
      weights: [n], how much each client counts; None: one each.
      rules: of this class.
    """

    def gain_of(row: Array, cover: Array) -> Array:
        return _listed_gains(lists, row[None], cover, weights)[0]

    # The first gains are known, not only bounded: else all that tie would be evaluated.
    run = run._replace(stamp=jnp.zeros_like(run.stamp))
    run = _begun(run, gain_of, _listed_cover(lists), weights, rules)
    return _finished(lists, run, weights, rules)


def _listed_gains(lists: Lists, rows: Array, cover: Array, weights: Array | None) -> Array:
    """Return the gains [b] of some candidates."""
    longest = jnp.max(lists.lengths[rows])

    def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
        first, sums = state
        clients, values, live = window(lists, rows, first)
        excess = jnp.where(live, jnp.maximum(cover[clients] - values, 0.0), 0.0)
        if weights is not None:
            excess = excess * weights[clients]
        ones = jnp.ones(WINDOW, jnp.float32)
        return first + WINDOW, sums + jnp.dot(excess, ones, precision="highest")

    zeros = jnp.zeros(rows.shape[0], jnp.float32)
    return jax.lax.while_loop(lambda s: s[0] < longest, add, (jnp.int32(0), zeros))[1]


def _listed_round(lists: Lists, weights: Array | None, rules: Rules) -> Callable[[Run], Run]:
    def round_(run: Run) -> Run:
        found = _candidates(run, LISTED_STRIPS)
        gains = _listed_gains(lists, found.rows, run.cover, weights)
        gains = jnp.where(found.old <= 0, found.old, rules.per_cost(gains, found.rows))
        return _evaluated(run, found, gains, jnp.ones(len(gains), bool))

    return round_


def _listed_cover(lists: Lists) -> Callable[[Run, Array], tuple[Array, Array]]:
    def update(run: Run, pick: Array) -> tuple[Array, Array]:
        def write(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            first, cover, nearest = state
            clients, values, live = (x[0] for x in window(lists, pick[None], first))
            closer = live & (values < cover[clients])
            places = jnp.where(closer, clients, cover.shape[0])
            cover = cover.at[places].set(values, mode="drop")
            return first + WINDOW, cover, nearest.at[places].set(run.taken, mode="drop")

        start = (jnp.int32(0), run.cover, run.nearest)
        return jax.lax.while_loop(lambda s: s[0] < lists.lengths[pick], write, start)[1:]

    return update


def first_run(
    top: Array,
    cover: Array,
    bounds: Array,
    selectable: Array,
    quota: Array,
    size: int,
    rules: Rules,
) -> Run:
    """Return a run before its first pick, from what ``Oracle.start`` gives."""
    total = selectable.shape[0]
    left = jnp.int32(0) if rules.budget is None else rules.budget
    bounds = rules.affordable(jnp.where(selectable, rules.per_cost(bounds), -1.0), left)
    return Run(
        cover=cover,
        nearest=jnp.full(cover.shape[0], -1, jnp.int32),
        bounds=bounds,
        best=_best_of_blocks(bounds),
        stamp=jnp.full(total, -1, jnp.int32),
        picks=jnp.zeros(size, jnp.int32),
        gains=jnp.zeros(size, jnp.float32),
        taken=jnp.int32(0),
        evaluations=jnp.int32(total),
        entries=jnp.int32(0),
        top=top,
        quota=quota,
        left=left,
    )
