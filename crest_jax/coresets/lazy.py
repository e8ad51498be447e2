"""Exact greedy facility location in memory linear in the data, as one compiled program.

Lazy greedy (Minoux, Optimization Techniques 1978) keeps an old gain of every candidate, which
submodularity makes an upper bound, and evaluates again only candidates near the top. Three things make
it fit an accelerator:

* Candidates lie in blocks of 64 whose largest bounds are kept, so that finding the best few touches a
  few short rows. One round evaluates the best candidate of the best block in each of several strips.
* Bounds come from matrix products (an upper bound, see ``metrics.lower_squared``); only the best
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
from crest_jax.coresets.run import Run
from crest_jax.types import Array

STRIPS = 32  # candidates evaluated in one round before the lists, the number of strips of blocks
LISTED_STRIPS = 8  # the same with lists
SAMPLE = 128  # candidates that tell how long the lists would be


def lazy_greedy(oracle: Oracle, selectable: Array, quota: Array, size: int, capacity: int) -> Run:
    """Choose ``quota`` candidates one by one, each with the largest gain; the lowest row on a tie.

    Args:
      oracle: dissimilarities of ``m`` candidates (whole blocks) to ``n`` clients.
      selectable: [m], bool, the candidates that may be picked.
      quota: [], int32, picks wanted, at most ``size`` and at most the number selectable.
      size: static length of the results.
      capacity: static length of the lists, 8 bytes each; 0 never builds them.

    Returns:
      The finished ``Run``; places beyond ``quota`` are 0.
    """
    total = selectable.shape[0]
    choose = _pick_one(_computed_round(oracle), computed_cover(oracle))

    def refresh(run: Run) -> Run:
        bounds = jnp.where(run.bounds < 0, -1.0, oracle.all_bounds(run.cover))
        return run._replace(
            bounds=bounds, best=_best_of_blocks(bounds), evaluations=run.evaluations + total
        )

    def computed(run: Run) -> Run:
        # The second pick's gains have little to do with the first one's: evaluate all once more.
        return choose(jax.lax.cond(run.taken == 1, refresh, lambda run: run, run))

    sample = jnp.asarray(np.linspace(0, total, SAMPLE, endpoint=False), jnp.int32)

    def stage(state: tuple[Run, Array]) -> tuple[Run, Array]:
        run, target = state
        run = jax.lax.while_loop(lambda run: run.taken < target, computed, run)
        if capacity == 0:
            return run, quota
        counts = jax.lax.population_count(oracle.closer(sample, run.cover)).astype(jnp.int32)
        counts = jnp.where((run.bounds[sample] >= 0)[:, None], counts, 0)
        expected = jnp.sum(counts, dtype=jnp.float32) * (total / SAMPLE)
        affordable = (expected < 0.9 * capacity) & (run.taken < quota)
        finish = partial(_listed, oracle, quota=quota, capacity=capacity)
        run = jax.lax.cond(affordable, finish, lambda run: run, run)
        return run, jnp.minimum(target + target // 4 + 1, quota)

    start = (first_run(oracle, selectable, size), jnp.minimum(4, quota))
    run, _ = jax.lax.while_loop(lambda state: state[0].taken < quota, stage, start)
    return run


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


def _computed_round(oracle: Oracle) -> Callable[[Run], Run]:
    def round_(run: Run) -> Run:
        found = _candidates(run, STRIPS)
        known = (run.stamp[found.rows] == run.taken) | (found.old <= 0)
        bounds = jnp.minimum(found.old, oracle.bounds(found.rows, run.cover))
        bounds = jnp.where(known, found.old, bounds)
        chosen = first_largest(jnp.where(known, -1.0, bounds))
        gain = gains_of(run.cover, oracle.exact(found.rows[chosen])[None, :])[0]
        # When every candidate of the round is known there is nothing to evaluate.
        gain = jnp.where(known[chosen], found.old[chosen], gain)
        new = bounds.at[chosen].set(gain)
        fresh = known | (jnp.arange(len(bounds)) == chosen)
        run = run._replace(evaluations=run.evaluations + len(bounds) + 1)
        return _evaluated(run, found, new, fresh)

    return round_


def computed_cover(oracle: Oracle) -> Callable[[Run, Array], tuple[Array, Array]]:
    """Return the update of cover [c] and nearest pick [c] by a pick, its distances computed anew."""

    def update(run: Run, pick: Array) -> tuple[Array, Array]:
        values = oracle.exact(pick)
        closer = values < run.cover
        # Whatever the distance, a client belongs to the first pick before it belongs to another.
        owned = closer | (run.taken == 0)
        return jnp.where(closer, values, run.cover), jnp.where(owned, run.taken, run.nearest)

    return update


def _pick_one(
    round_: Callable[[Run], Run], update: Callable[[Run, Array], tuple[Array, Array]]
) -> Callable[[Run], Run]:
    def settled(run: Run) -> Array:
        # A bound of 0 is exact, for no gain is negative.
        top = _top(run)
        return (run.stamp[top] == run.taken) | (run.bounds[top] <= 0)

    def pick(run: Run) -> Run:
        run = jax.lax.while_loop(lambda run: ~settled(run), round_, run)
        top = _top(run)
        cover, nearest = update(run, top)
        bounds = run.bounds.at[top].set(-1.0)
        block = top // BLOCK
        inside = jax.lax.dynamic_slice(bounds, (block * BLOCK,), (BLOCK,))
        return run._replace(
            cover=cover,
            nearest=nearest,
            bounds=bounds,
            best=run.best.at[block].set(jnp.max(inside)),
            picks=run.picks.at[run.taken].set(top),
            gains=run.gains.at[run.taken].set(run.bounds[top]),
            taken=run.taken + 1,
        )

    return pick


def _listed(oracle: Oracle, run: Run, quota: Array, capacity: int) -> Run:
    """Build the lists and finish with them; if they do not fit after all, return the run as it was."""
    entries, lists = build(oracle, run, capacity)

    def go(run: Run) -> Run:
        return finished_by_lists(lists, run._replace(entries=entries), quota)

    run = run._replace(evaluations=run.evaluations + run.bounds.shape[0])
    return jax.lax.cond(entries <= capacity, go, lambda run: run, run)


def finished_by_lists(lists: Lists, run: Run, quota: Array) -> Run:
    """Choose until ``quota`` picks are made, with all that candidates can still improve in lists."""
    finish = _pick_one(_listed_round(lists), _listed_cover(lists))
    return jax.lax.while_loop(lambda run: run.taken < quota, finish, run)


def _listed_round(lists: Lists) -> Callable[[Run], Run]:
    def round_(run: Run) -> Run:
        found = _candidates(run, LISTED_STRIPS)
        longest = jnp.max(lists.lengths[found.rows])

        def add(state: tuple[Array, Array]) -> tuple[Array, Array]:
            first, sums = state
            clients, values, live = window(lists, found.rows, first)
            excess = jnp.where(live, jnp.maximum(run.cover[clients] - values, 0.0), 0.0)
            ones = jnp.ones(WINDOW, jnp.float32)
            return first + WINDOW, sums + jnp.dot(excess, ones, precision="highest")

        zeros = jnp.zeros(found.rows.shape[0], jnp.float32)
        _, gains = jax.lax.while_loop(lambda s: s[0] < longest, add, (jnp.int32(0), zeros))
        gains = jnp.where(found.old <= 0, found.old, gains)
        return _evaluated(run, found, gains, jnp.ones(len(zeros), bool))

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


def first_run(oracle: Oracle, selectable: Array, size: int) -> Run:
    """Return what lazy greedy remembers before its first pick."""
    return begun(*oracle.start(), selectable, size)


def begun(top: Array, cover: Array, bounds: Array, selectable: Array, size: int) -> Run:
    """Return a run before its first pick, from cover [n] and upper bounds of gains [m]."""
    total = selectable.shape[0]
    bounds = jnp.where(selectable, bounds, -1.0)
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
    )
