"""Exact greedy facility location for accelerators: each pick's change of cover is pushed to all gains.

Lazy greedy looks at few candidates a pick, but in loops whose length the device decides, at each of
which its host waits; it would launch some 650,000 kernels for 20,000 rows. Here a pick is some thirty
kernels of fixed size. Clients whose cover a pick has changed take from the gains of all candidates what
they no longer gain there. These gains carry rounding, so that with a margin they are upper bounds; what
a subtraction cuts off is taken along to the next, so that the margin holds for any number of them. The
eight largest are computed anew from direct differences, and the largest of these is the pick where it
exceeds all other bounds. A gain from which nothing was taken is still right at the next pick.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.lazy import first_run
from crest_jax.coresets.oracles import PointOracle, gains_of
from crest_jax.coresets.rules import NO_RULES
from crest_jax.coresets.run import Run
from crest_jax.types import Array

LOOKS = 8  # candidates that are computed anew in a turn
TURNS = 32  # turns between two looks at whether the phase is over, for which a GPU's host waits
MARGIN = 8e-6  # share of the largest gain, above the rounding of the gains of a phase
_PHASE = 4  # every phase ends at this many times the picks of the one before


class _State(NamedTuple):
    cover: Array  # [n]
    pushed: Array  # [n], the cover that the gains know of
    nearest: Array  # [n]
    gains: Array  # [m], of a cover ``pushed``, with rounding
    cut: Array  # [m], what rounding has taken from them too much
    exact: Array  # [m], direct gains where ``fresh``
    fresh: Array  # [m], whether they are of the cover now
    free: Array  # [m]
    picks: Array  # [size]
    won: Array  # [size], gains of the picks
    taken: Array  # []
    margin: Array  # []
    looks: Array  # [], candidates computed anew


def phases(size: int) -> list[int]:
    """Return the numbers of picks after which all gains are computed anew.

    Example:
      >>> phases(20)
      [1, 4, 16, 20]
    """
    ends = [1]
    while ends[-1] < size:
        ends.append(min(size, ends[-1] * _PHASE))
    return ends


def push_greedy(
    oracle: PointOracle, selectable: Array, quota: Array, size: int, most_pending: int
) -> Run:
    """Choose ``quota`` candidates one by one, each with the largest gain; the lowest row on a tie.

    Args:
      oracle: dissimilarities of ``m`` candidates to ``n`` clients, both whole blocks.
      selectable: [m], bool, the candidates that may be picked.
      quota: [], int32, picks wanted, at most ``size`` and at most the number selectable.
      size: static length of the results.
      most_pending: static, clients that are pushed in a turn, 4 m bytes each; what is left waits for
        the next turn.

    Returns:
      The finished ``Run``; places beyond ``taken`` are 0.
    """
    top, state = begin(oracle, selectable, size)
    before = 0
    for end in phases(size):
        state = jax.lax.cond(state.taken < quota, lambda s: _again(oracle, s), lambda s: s, state)
        state = _phase(oracle, top, state, jnp.minimum(end, quota), (before, end), most_pending)
        before = end
    run = first_run(top, state.cover, state.gains, selectable, quota, size, NO_RULES)
    return run._replace(
        nearest=state.nearest,
        picks=state.picks,
        gains=state.won,
        taken=state.taken,
        evaluations=state.looks,
    )


def begin(oracle: PointOracle, selectable: Array, size: int) -> tuple[Array, _State]:
    """Return the dissimilarity [] at which the similarity is 0, and the state before any pick."""
    top, cover = oracle.begin()
    none = jnp.zeros(selectable.shape[0], jnp.float32)
    return top, _State(
        cover=cover,
        pushed=cover,
        nearest=jnp.full(cover.shape[0], -1, jnp.int32),
        gains=none,
        cut=none,
        exact=none,
        fresh=jnp.zeros_like(selectable),
        free=selectable,
        picks=jnp.zeros(size, jnp.int32),
        won=jnp.zeros(size, jnp.float32),
        taken=jnp.int32(0),
        margin=jnp.float32(0),
        looks=jnp.int32(0),
    )


def _phase(
    oracle: PointOracle,
    top: Array,
    state: _State,
    target: Array,
    picks: tuple[int, int],
    most_pending: int,
) -> _State:
    """Go on until ``target`` picks are made; ``picks`` are static bounds of their number."""
    before, end = picks
    # A pick is nearest to about n / t of the clients after t picks; three times as many seldom change.
    count = oracle.num_clients
    pending = count if before == 0 else min(count, max(64, 1 << (3 * count // before).bit_length()))
    pending = min(pending, most_pending)

    def stale(state: _State) -> Array:
        best = jnp.max(jnp.where(state.free, state.gains, 0.0))
        return (best <= 16 * state.margin) & (state.taken < target)

    def turns(state: _State) -> _State:
        # Where gains have come down to the margin it tells no two candidates apart.
        state = jax.lax.cond(stale(state), lambda s: _again(oracle, s), lambda s: s, state)
        number = np.int32(min(TURNS, end - before))
        again = lambda _, s: turn(oracle, top, s, target, pending)  # noqa: E731
        return jax.lax.fori_loop(np.int32(0), number, again, state)

    return jax.lax.while_loop(lambda state: state.taken < target, turns, state)


def _again(oracle: PointOracle, state: _State) -> _State:
    """Compute all gains anew."""
    gains = oracle.direct_gains(state.cover)
    margin = MARGIN * jnp.max(jnp.where(state.free, gains, 0.0))
    cut = jnp.zeros_like(gains)
    return state._replace(gains=gains, cut=cut, pushed=state.cover, margin=margin)


def _bounds(state: _State) -> Array:
    """Return upper bounds [m] of the gains, exact ones where they are fresh."""
    bounds = jnp.where(state.fresh, state.exact, state.gains + state.margin)
    return jnp.where(state.free, bounds, -jnp.inf)


def turn(oracle: PointOracle, top: Array, state: _State, target: Array, pending: int) -> _State:
    """Compute the gains of the best few anew, make the pick if it is sure, push what is pending."""
    cover, count = state.cover, state.cover.shape[0]
    _, looked = jax.lax.top_k(_bounds(state), min(LOOKS, state.gains.shape[0]))
    exact = gains_of(cover, oracle.direct(looked), oracle.weights)
    state = state._replace(
        exact=state.exact.at[looked].set(exact), fresh=state.fresh.at[looked].set(True)
    )
    pick = jnp.argmax(_bounds(state)).astype(jnp.int32)  # the first of equal ones
    sure = (state.taken < target) & state.fresh[pick]
    values = oracle.direct(pick[None])[0]
    closer = values < cover
    # A client belongs to the first pick before it belongs to another, or to a row of elsewhere.
    unowned = state.taken == 0
    if oracle.begun:
        unowned &= cover >= top
    nearest = jnp.where(sure & (closer | unowned), state.taken, state.nearest)
    cover = jnp.where(sure & closer, values, cover)
    slot = jnp.where(sure, state.taken, state.picks.shape[0])
    # The lowest clients whose change the gains do not know of yet; ``count`` stands for none.
    waiting = state.pushed > cover
    places = jnp.cumsum(waiting, dtype=jnp.int32)
    slots = jnp.where(waiting, places - 1, pending)
    changed = jnp.full(pending, count, jnp.int32)
    changed = changed.at[slots].set(jnp.arange(count, dtype=jnp.int32), mode="drop")
    real, rows = changed < count, jnp.minimum(changed, count - 1)
    each = real if oracle.weights is None else jnp.where(real, oracle.weights[rows], 0.0)
    less = oracle.gains_lost(rows, state.pushed[rows], cover[rows], each)
    # Kahan's sum: rounding of many small differences would add up above any margin.
    lost = less - state.cut
    gains = state.gains - lost
    still = (less == 0) & (places[-1] <= pending)
    number = jnp.where(state.taken < target, looked.shape[0], 0)
    return state._replace(
        cover=cover,
        pushed=state.pushed.at[changed].set(cover[rows], mode="drop"),
        nearest=nearest,
        gains=gains,
        cut=(state.gains - gains) - lost,
        fresh=state.fresh & (still | ~sure),
        free=state.free & ~(sure & (jnp.arange(state.free.shape[0]) == pick)),
        picks=state.picks.at[slot].set(pick, mode="drop"),
        won=state.won.at[slot].set(state.exact[pick], mode="drop"),
        taken=state.taken + sure.astype(jnp.int32),
        looks=state.looks + number,
    )
