"""Exact greedy facility location on a pool whose rows are spread over several devices.

Each device covers its own rows. Gains can only fall as picks are added, so an old gain is an upper
bound (Minoux, Optimization Techniques 1978): in each round every device proposes its most promising
candidates, all devices sum the gains of these over their own rows, one all-reduce adds the sums up,
and the best candidate is taken once no bound exceeds it.
"""

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from crest_jax import _checks
from crest_jax.coresets import metrics, sums
from crest_jax.coresets.coverage import covered_share, scaled_up
from crest_jax.coresets.distances import TERMS
from crest_jax.coresets.frame import Frame
from crest_jax.coresets.inputs import restored
from crest_jax.coresets.metrics import Metric
from crest_jax.coresets.numbers import real_array
from crest_jax.coresets.oracles import gains_of
from crest_jax.coresets.partition import check_size, partition
from crest_jax.data.devices import automatic, gather, in_all_processes, place, spread
from crest_jax.types import Array, Coreset

_SLACK = 3e-6  # rounding of the first bounds, by which they are raised, relative to their terms
_NONE = 2**31 - 1
_UNIT = 128  # rows on a device are a multiple of it, for sums in two levels


def select_coreset_sharded(
    embeddings: Any,
    size: int,
    *,
    mesh: Mesh,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    gamma: float | None = None,
    quotas: Any = "proportional",
    proposals: int = 16,
) -> Coreset:
    """Choose ``size`` medoids of a pool that is spread over the devices of a mesh, exactly.

    The choice is that of ``select_coreset``, up to float32 rounding (a relative gap of at most 1e-6);
    no device holds more than its share of the rows, and no pairs of rows are stored. Facility location
    and greedy: see ``select_coreset``; bounds: Minoux, "Accelerated greedy algorithms for maximizing
    submodular set functions", Optimization Techniques 1978.

    Args:
      embeddings: [n, d], any float type, computed in float32. With several processes this process's
        share of the rows, equally many in each, in the order of the processes.
      size: number of picks ``m``, at most ``n``.
      mesh: the devices.
      labels: [n], the classes of all rows, whole numbers or strings, or None.
      num_classes: labels from it on are an error; None allows all.
      metric: as in ``select_coreset``, any but "precomputed".
      gamma: of the metric "rbf"; see ``select_coreset``.
      quotas: as in ``select_coreset``.
      proposals: candidates that each device proposes in a round. More make rounds fewer and longer.

    Returns:
      As ``select_coreset``, whole on every device. ``O(n^2 d / devices)`` time for the first bounds,
      and ``O(proposals n d)`` for each round, of which there are a few for each pick.

    Raises:
      ValueError: on empty, NaN or infinite embeddings, labels of the wrong length or out of range, a
        size outside ``[1, n]``, quotas that cannot be met, or an unknown metric.

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> points = np.array([[0.0], [1.0], [10.0]])
      >>> coreset = select_coreset_sharded(points, 2, mesh=mesh)
      >>> coreset.indices.tolist(), coreset.weights.tolist(), float(coreset.objective)
      ([1, 2], [2.0, 1.0], 29.0)
    """
    own = np.asarray(real_array(embeddings))
    _checks.require(
        own.ndim == 2 and min(own.shape) > 0,
        f"embeddings have shape {own.shape} but must be [n, d] with n >= 1; flatten each example's "
        "embedding to a vector.",
    )
    _checks.one_of("metric", metric, metrics.METRICS[:-1])
    metrics.check_gamma(metric, gamma)
    _checks.positive_int("proposals", proposals)
    share = len(own)
    count, first = share * jax.process_count(), share * jax.process_index()
    check_size(size, count, "examples")
    parts = partition(labels, (count,), size, quotas, num_classes)
    frame = Frame(metric, gamma)
    points = in_all_processes(lambda: frame.points(own, first), "embeddings")
    common = frame.common(np.stack(gather(frame.facts())))
    points = in_all_processes(lambda: frame.moved(points, common, 0), "embeddings")
    places = np.arange(first, first + share, dtype=np.int32)
    blank = np.zeros(share, np.int32) if points.blank is None else points.blank
    classes = parts.labels[0]
    choose = _program(
        automatic(mesh),
        common.metric,
        size,
        parts.number,
        proposals,
        orphans=parts.orphans and not parts.spread,
    )
    picks, gains, weights, top, floor = choose(
        spread(points.parts[0], mesh, _UNIT),
        spread(blank, mesh, _UNIT),
        spread(places + 1, mesh, _UNIT),  # 0 where zeros fill a share
        spread(classes[first : first + share], mesh, _UNIT),
        place(jnp.asarray(parts.quotas[0], jnp.int32), mesh),
    )
    order = np.argsort(classes[np.asarray(picks)], kind="stable")
    objective = jnp.sum(gains)
    covered = covered_share(objective, top, float(count), floor)
    found = Coreset(picks[order], weights[order], gains[order], objective, None, covered)
    return restored(found, common.pool())


class _State(NamedTuple):
    """What a device knows of its own rows [k], and what all know."""

    cover: Array  # [k], dissimilarity to the nearest pick of the row's class
    nearest: Array  # [k], int32, the pick that is nearest, -1 before there is one
    bounds: Array  # [k], upper bound of the row's gain
    fresh: Array  # [k], bool: the bound is the gain
    free: Array  # [k], bool
    left: Array  # [c], int32, picks still to make of each class
    picks: Array  # [m], int32, rows in the order of the choice
    gains: Array  # [m]
    done: Array  # [], int32


class _Share(NamedTuple):
    """What never changes on one device: its rows [k, d] and how all are measured."""

    axes: Any  # names of the mesh's axes
    metric: Metric
    width: int  # rows that each device proposes in a round
    rows: Array  # [k, d]
    blank: Array  # [k], whether a row has no direction
    strata: Array  # [k], class of each row
    valid: Array  # [k], bool
    places: Array  # [k], int32, positions in the pool

    @property
    def height(self) -> int:
        """k, rows on this device."""
        return self.rows.shape[0]

    def gathered(self, x: Array) -> Array:
        """Join the parts of all devices."""
        return jax.lax.all_gather(x, self.axes, tiled=True)

    def sum(self, x: Array) -> Array:
        """Sum over the devices."""
        return jax.lax.psum(x, self.axes)

    def own(self, values: Array) -> Array:
        """Take this device's part of something about all proposals."""
        start = jax.lax.axis_index(self.axes) * self.width
        return jax.lax.dynamic_slice_in_dim(values, start, self.width)

    def to_rows(self, heads: Array, blanks: Array) -> Array:
        """Dissimilarities [t, k] of some rows [t, d] to this device's."""
        term = TERMS[self.metric.form]

        def add(total: Array, columns: tuple[Array, Array]) -> tuple[Array, None]:
            head, row = columns
            return total + term(head[:, None], row[None, :]), None

        zeros = jnp.zeros((heads.shape[0], self.height), jnp.float32)
        found = jax.lax.scan(add, zeros, (heads.T, self.rows.T))[0]
        if self.metric.name == "cosine":
            found = found + sums.without_direction(blanks[:, None], self.blank[None, :])
        return self.metric.from_sums(found)

    def within(self, some: Array, classes: Array) -> Array:
        """Dissimilarities of some rows of every device, infinite between classes."""
        values = self.to_rows(self.gathered(self.rows[some]), self.gathered(self.blank[some]))
        return jnp.where(classes[:, None] == self.strata[None, :], values, jnp.inf)

    def one(self, mine: Array) -> Array:
        """Dissimilarities [k] of the one row of all that is marked."""
        head = self.sum(jnp.sum(jnp.where(mine[:, None], self.rows, 0.0), axis=0))
        number = self.sum(jnp.sum(jnp.where(mine, self.blank, 0), dtype=jnp.int32))
        return self.to_rows(head[None], number[None])[0]


@functools.lru_cache(maxsize=8)
def _program(
    mesh: Mesh, metric: Metric, size: int, num_classes: int, proposals: int, orphans: bool
) -> Any:
    """Return the compiled choice for one kind of problem."""
    axes = mesh.axis_names

    def choose(
        rows: Array, blank: Array, marks: Array, strata: Array, quotas: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Work on this device's rows [k, d]; see ``select_coreset_sharded``."""
        valid, places = marks > 0, marks - 1
        width = min(proposals, rows.shape[0])
        share = _Share(axes, metric, width, rows, blank, strata, valid, places)
        ones = valid.astype(jnp.float32)
        counts = share.sum(jnp.zeros(num_classes, jnp.float32).at[strata].add(ones))
        bounds, top, floor = _first_bounds(share, quotas, counts)
        first = _State(
            cover=jnp.where(valid, top, -jnp.inf),
            nearest=jnp.full(rows.shape[0], -1, jnp.int32),
            bounds=bounds,
            fresh=jnp.zeros(rows.shape[0], bool),
            free=valid,
            left=quotas,
            picks=jnp.zeros(size, jnp.int32),
            gains=jnp.zeros(size, jnp.float32),
            done=jnp.zeros((), jnp.int32),
        )
        last = jax.lax.while_loop(lambda state: state.done < size, partial(_round, share), first)
        adopt = orphans or metric.signed
        nearest = _adopted(share, last, quotas, size, orphans) if adopt else last.nearest
        slots = jnp.where(nearest >= 0, nearest, size)
        weights = share.sum(jnp.zeros(size, jnp.float32).at[slots].add(ones, mode="drop"))
        weights = scaled_up(weights, share.sum(jnp.sum(ones)))
        return last.picks, last.gains, weights, top, floor

    apart, shared = PartitionSpec(axes), PartitionSpec()
    return jax.jit(
        jax.shard_map(
            choose,
            mesh=mesh,
            in_specs=(apart, apart, apart, apart, shared),
            out_specs=shared,
            check_vma=False,
        )
    )


def _first_bounds(share: _Share, quotas: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Return upper bounds [k] of the first gains, the dissimilarity of similarity 0, and the floor.

    Sums of dissimilarities to all of the class come first: the largest one is known only then. For the
    floor see ``covered_share``.
    """
    width = share.width

    def look(turn: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        totals, farthest, least = state
        block = turn * width + jnp.arange(width, dtype=jnp.int32)
        block = jnp.minimum(block, share.height - 1)
        classes = share.gathered(jnp.where(share.valid[block], share.strata[block], -1))
        values = share.within(block, classes)
        values = jnp.minimum(values, 0.0) if share.metric.signed else values
        known = jnp.where((values < jnp.inf) & share.valid[None, :], values, 0.0)
        size = jnp.abs(known) if share.metric.signed else known
        total = share.sum(gains_of(jnp.zeros(known.shape[1], jnp.float32), -size))
        picked = jnp.where((quotas[share.strata] > 0)[None, :], known, 0.0)
        least = jnp.minimum(least, jnp.min(known, axis=0)) if share.metric.signed else least
        totals = totals.at[block].set(share.own(total))
        return totals, jnp.maximum(farthest, jnp.max(picked)), least

    turns = -(-share.height // width)
    zeros = jnp.zeros(share.height, jnp.float32)
    start = (zeros, jnp.float32(0), zeros)
    totals, farthest, least = jax.lax.fori_loop(np.int32(0), np.int32(turns), look, start)
    top = share.metric.top(jax.lax.pmax(farthest, share.axes))
    if share.metric.signed:
        return totals * (1 + _SLACK), top, share.sum(jnp.sum(least))
    most = counts[share.strata] * top
    bounds = jnp.maximum(most - totals, 0.0) + _SLACK * counts[share.strata] * top
    return bounds, top, jnp.float32(0)


def _round(share: _Share, state: _State) -> _State:
    """Evaluate the proposals of all devices, and pick the best row where no bound is above it."""
    eligible = state.free & (state.left[share.strata] > 0)
    waiting = jnp.where(eligible & ~state.fresh, state.bounds, -jnp.inf)
    highest, proposed = jax.lax.top_k(waiting, share.width)
    real = highest > -jnp.inf
    values = share.within(proposed, share.gathered(jnp.where(real, share.strata[proposed], -1)))
    gains = share.own(share.sum(gains_of(state.cover, values)))
    bounds = state.bounds.at[proposed].set(jnp.where(real, gains, state.bounds[proposed]))
    fresh = state.fresh.at[proposed].set(real | state.fresh[proposed]) | (bounds <= 0)
    known = jnp.where(eligible & fresh, bounds, -jnp.inf)
    best = jax.lax.pmax(jnp.max(known), share.axes)
    rival = jax.lax.pmax(jnp.max(jnp.where(eligible & ~fresh, bounds, -jnp.inf)), share.axes)
    lowest = jnp.min(jnp.where(known == best, share.places, _NONE))
    state = state._replace(bounds=bounds, fresh=fresh)
    taken = _taken_into(share, state, jax.lax.pmin(lowest, share.axes), best)
    # A bound that equals the best gain may hide a lower row with the same gain.
    sure = best > rival
    return jax.tree.map(lambda new, old: jnp.where(sure, new, old), taken, state)


def _taken_into(share: _Share, state: _State, pick: Array, gain: Array) -> _State:
    mine = share.places == pick
    label = share.sum(jnp.sum(jnp.where(mine, share.strata, 0), dtype=jnp.int32))
    values = share.one(mine)
    members = (share.strata == label) & share.valid
    closer = members & ((values < state.cover) | mine | (state.nearest < 0))
    return _State(
        cover=jnp.where(members, jnp.minimum(state.cover, values), state.cover),
        nearest=jnp.where(closer, state.done, state.nearest),
        bounds=state.bounds,
        fresh=state.fresh & (share.strata != label),
        free=state.free & ~mine,
        left=state.left.at[label].add(-1),
        picks=state.picks.at[state.done].set(pick),
        gains=state.gains.at[state.done].set(gain),
        done=state.done + 1,
    )


def _adopted(share: _Share, last: _State, quotas: Array, size: int, orphans: bool) -> Array:
    """Return the nearest picks [k], those of any class for rows of classes without a pick.

    With negative similarities all rows are looked at again, for none need have covered a row.
    """

    def adopt(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        closest, nearest = state
        mine = share.places == last.picks[index]
        values = share.one(mine)
        if share.metric.signed:
            label = share.sum(jnp.sum(jnp.where(mine, share.strata, 0), dtype=jnp.int32))
            mine = mine & share.valid
            values = jnp.where((share.strata == label) | (quotas[share.strata] == 0), values, jnp.inf)
            values = jnp.where(mine, -jnp.inf, values)
        closer = values < closest
        return jnp.minimum(closest, values), jnp.where(closer, index, nearest)

    limit = jnp.full(share.height, jnp.inf, jnp.float32)
    start = (limit, jnp.zeros_like(last.nearest))
    adopted = jax.lax.fori_loop(np.int32(0), np.int32(size), adopt, start)[1]
    if share.metric.signed:
        whole = (quotas[share.strata] > 0) | orphans
        return jnp.where(share.valid & whole, adopted, -1)
    return jnp.where(quotas[share.strata] == 0, adopted, last.nearest)
