"""The rules that ``few_picks`` compares: who is picked and whom the picks stand for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from crest_jax.data.quotas import largest_remainder

MEASURE, CHOSEN = "stratified", "W"
RULES = {
    "random": "random batch out of the whole data, unit weights",
    "stratified": "stratified random batch out of the whole data, unit weights: the measure",
    "S": "stratified random batch out of the subset, unit weights",
    "A": "the subset as one class",
    "B": "quotas by largest remainder, orphans to the nearest pick",
    "Bs": "quotas by largest remainder, orphans to none",
    "C": "one pick for each class where there are enough, the rest by largest remainder of the rows "
    "left, orphans to the nearest pick",
    "Cx": "one pick for each class where there are enough, the rest by largest remainder of what the "
    "class's share exceeds one by, orphans to the nearest pick",
    "Cr": "as Cx, the rest rounded at random; where there are too few, as F",
    "D": "quotas rounded at random (systematic sampling, classes in random order), orphans to the "
    "nearest pick",
    "D0": "quotas by systematic sampling from 1/2, classes by number, orphans to the nearest pick",
    "E": "as D, orphans to none",
    "E0": "as D0, orphans to none",
    "F": "as D, orphans to none, weights of a class over its probability of a pick",
    "F0": "as D0, orphans to none, weights as F",
    "Fc": "as F, classes ordered as a chain of nearest mean gradients",
    "W": "one pick for each class where there are enough, the rest as Cx; otherwise none or one for "
    "each, with probability in proportion to its rows but at most 1 (systematic sampling from a random "
    "start, classes by number), weight of a class over its probability, orphans to none",
    "W0": "as W, but from 1/2",
    "K": "as W where there are enough; otherwise one pick for each of the largest classes, orphans to "
    "none",
    "N": "as W, but probability in proportion to the sum of the distances of a class's gradients to "
    "the mean gradient",
    "P": "as W, but where there are enough the rest goes where the greedy gain is largest",
    "G": "classes merged to groups of two picks or more, neighbours by the first principal component "
    "of their mean gradients",
    "Gc": "as G, neighbours in the order of Fc",
    "Hn": "one greedy run over all classes, similar within a class only, orphans to the nearest pick",
    "Hs": "one greedy run over all classes, similar within a class only, orphans to none",
}


def systematic(counts: jax.Array, size: jax.Array, start: jax.Array, order: jax.Array) -> jax.Array:
    """Split ``size`` over classes taken in ``order`` [c], by systematic sampling.

    ``start`` in [0, 1) is the random start, as a share of a step.

    >>> systematic(jnp.full(4, 5), jnp.int32(2), jnp.float32(0.5), jnp.arange(4)).tolist()
    [1, 0, 1, 0]
    """
    total = jnp.maximum(jnp.sum(counts), 1)
    edges = (size * jnp.cumsum(counts[order]) + (start * total).astype(jnp.int32)) // total
    return jnp.zeros_like(counts).at[order].set(jnp.diff(edges, prepend=0).astype(counts.dtype))


def one_each(
    counts: jax.Array, size: Any, excess: bool, split: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """Give each class one pick where there are enough, and split the rest.

    >>> one_each(jnp.array([8, 1, 1]), 5, True, largest_remainder).tolist()
    [3, 1, 1]
    """
    present = (counts > 0).astype(counts.dtype)
    base = jnp.where(size >= jnp.sum(present), present, 0)
    left = counts - base
    if excess:
        over = jnp.maximum(size * counts - jnp.sum(counts), 0)
        left = jnp.where(jnp.sum(base) > 0, over, counts)
    return base + split(left, size - jnp.sum(base))


def capped(counts: jax.Array, size: Any, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return quotas of 0 or 1 and their probabilities, in proportion to ``counts`` but at most 1.

    >>> quotas, chances = capped(jnp.array([8, 1, 1]), 2, jnp.float32(0.7))
    >>> quotas.tolist(), chances.tolist()
    ([1, 1, 0], [1.0, 0.5, 0.5])
    """
    falling = -jnp.sort(-counts)
    rest = jnp.sum(counts) - jnp.cumsum(falling) + falling  # rows of this class and of all smaller
    certain = (size - jnp.arange(counts.shape[0])) * falling >= rest
    count = jnp.sum(jnp.cumprod(certain.astype(jnp.int32)))
    rank = jnp.argsort(jnp.argsort(-counts, stable=True))
    sure = rank < count
    others, left = jnp.where(sure, 0, counts), size - count
    chances = jnp.where(sure, 1.0, left * others / jnp.maximum(jnp.sum(others), 1))
    return sure + systematic(others, left, start, jnp.arange(counts.shape[0])), chances


def distances(x: jax.Array) -> jax.Array:
    """Return Euclidean distances [r, r] of rows [r, c]."""
    x = x - jnp.mean(x, 0)
    norms = jnp.sum(x * x, 1)
    squared = norms[:, None] + norms[None, :] - 2 * jnp.dot(x, x.T, precision="highest")
    return jnp.sqrt(jnp.maximum(squared, 0.0)) * (1 - jnp.eye(x.shape[0]))


class Order(NamedTuple):
    """Rows in the order in which greedy runs within groups pick them."""

    rank: jax.Array  # [r], int32
    gains: jax.Array  # [r]


def greedy_order(values: jax.Array, groups: jax.Array, count: int, rounds: jax.Array) -> Order:
    """Run greedy facility location within each of ``count`` groups, for so many rounds."""
    rows = jnp.arange(groups.shape[0])
    same = groups[:, None] == groups[None, :]
    within = jnp.where(same, values, jnp.inf)
    members = jnp.arange(count)[:, None] == groups[None, :]
    top = jnp.max(jnp.where(same, values, 0.0))

    def step(round_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        cover, rank, gains = state
        gain = jnp.sum(jnp.maximum(cover[:, None] - within, 0.0), axis=0)
        candidates = jnp.where(members & (rank == _NEVER)[None, :], gain[None, :], -1.0)
        best = jnp.max(candidates, axis=1)
        picks = jnp.min(jnp.where(candidates == best[:, None], rows[None, :], rows[-1]), axis=1)
        slots = jnp.where(best >= 0, picks, rows.shape[0])
        rank = rank.at[slots].set(round_, mode="drop")
        gains = gains.at[slots].set(best, mode="drop")
        # A group that is full has no row left to cover.
        cover = jnp.minimum(cover, within[picks[groups], rows])
        return cover, rank, gains

    start = jnp.full(rows.shape, top), jnp.full(rows.shape, _NEVER), jnp.zeros(rows.shape)
    return Order(*jax.lax.fori_loop(0, rounds, step, start)[1:])


_NEVER = jnp.int32(2**30)


def first_component(means: jax.Array, counts: jax.Array) -> jax.Array:
    """Return classes [c] in the order of the first principal component of means [c, d]."""
    share = counts / jnp.sum(counts)
    centred = means - share @ means

    def step(_: int, axis: jax.Array) -> jax.Array:
        axis = (share * (centred @ axis)) @ centred
        return axis / jnp.maximum(jnp.linalg.norm(axis), 1e-30)

    axis = jax.lax.fori_loop(0, 30, step, centred[jnp.argmax(counts)])
    return jnp.argsort(centred @ axis)


def chain(means: jax.Array, counts: jax.Array) -> jax.Array:
    """Return classes [c]: first the longest mean of [c, d], then always the nearest one left."""
    apart = distances(means)

    def step(state: tuple[jax.Array, jax.Array], _: Any) -> tuple[Any, jax.Array]:
        here, free = state
        free = free.at[here].set(False)
        after = jnp.argmin(jnp.where(free, apart[here], jnp.inf))
        return (after, free), here

    start = jnp.argmax(jnp.where(counts > 0, jnp.linalg.norm(means, axis=1), -1.0))
    state = start, jnp.ones(counts.shape, bool)
    return jax.lax.scan(step, state, length=counts.shape[0])[1]


class _Subset(NamedTuple):
    """A subset [r] of examples with their distances, and how many picks are wanted."""

    values: jax.Array  # [r, r], distances
    labels: jax.Array  # [r]
    counts: jax.Array  # [c]
    size: jax.Array  # picks wanted
    most: int  # places for picks

    @property
    def valid(self) -> jax.Array:
        """Which places are wanted, [most]."""
        return jnp.arange(self.most) < self.size

    def slots(self, mask: jax.Array) -> jax.Array:
        """Rows that are marked, [most]."""
        return jnp.nonzero(mask, size=self.most, fill_value=0)[0]

    def owned(self, picks: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Count the rows of its own group, and of groups without a pick, nearest to each pick."""
        valid = self.valid
        near = jnp.where(valid, self.values[:, picks], jnp.inf)
        same = (groups[:, None] == groups[picks][None, :]) & valid
        covered = jnp.any(same, axis=1)
        nearest = jnp.argmin(jnp.where(same | ~covered[:, None], near, jnp.inf), axis=1)
        at = jnp.where(valid, picks, self.labels.shape[0])
        nearest = nearest.at[at].set(jnp.arange(self.most), mode="drop")
        zeros = jnp.zeros(self.most)
        return zeros.at[nearest].add(covered), zeros.at[nearest].add(~covered)

    def found(self, mask: jax.Array, groups: jax.Array, spread: bool, chances: Any = 1.0) -> Any:
        """Return the marked rows with their weights."""
        picks = self.slots(mask)
        own, orphans = self.owned(picks, groups)
        chances = jnp.broadcast_to(chances, self.counts.shape)[self.labels[picks]]
        return picks, (own if spread else own + orphans) / chances

    def grouped(self, order: jax.Array) -> Any:
        """Join classes that are neighbours in an order to groups of two picks each."""
        counts, size, rows = self.counts, self.size, self.labels.shape[0]
        groups = jnp.maximum(1, size // 2)
        running = jnp.cumsum(counts[order])
        middle = 2 * running - counts[order]  # twice the place of the middle row
        places = jnp.clip(middle * groups // (2 * rows), 0, groups - 1)
        group = jnp.zeros_like(order).at[order].set(places)[self.labels]
        quotas = largest_remainder(jnp.bincount(group, length=max(1, self.most // 2)), size)
        greedy = greedy_order(self.values, group, max(1, self.most // 2), jnp.max(quotas))
        return self.found(greedy.rank < quotas[group], group, False)


def _order(values: jax.Array) -> jax.Array:
    """Rank values, the largest first."""
    return jnp.argsort(jnp.argsort(-values, stable=True))


def choose(
    key: jax.Array, embeddings: jax.Array, labels: jax.Array, size: jax.Array, most: int,
    num_classes: int,
) -> dict[str, tuple[jax.Array, jax.Array]]:  # fmt: skip
    """Return picks and weights [most] by every rule that chooses medoids out of a subset [r].

    There are ``size`` picks, at most ``most``; the weights of the other places are 0.
    """
    values, counts = distances(embeddings), jnp.bincount(labels, length=num_classes)
    subset = _Subset(values, labels, counts, size, most)
    means = jax.ops.segment_sum(embeddings, labels, num_classes) / jnp.maximum(counts, 1)[:, None]
    by_class = greedy_order(values, labels, num_classes, jnp.max(counts))
    start_key, order_key, random_key = jax.random.split(key, 3)
    start, half = jax.random.uniform(start_key), jnp.float32(0.5)
    shuffled = jax.random.permutation(order_key, num_classes)
    component, linked = first_component(means, counts), chain(means, counts)
    apart = jnp.linalg.norm(embeddings - jnp.mean(embeddings, 0), axis=1)
    sums = jax.ops.segment_sum(apart, labels, num_classes)
    # Whole numbers, so that the rounding is exact; above 0 where a class has rows.
    masses = jnp.round(1e6 * sums / jnp.sum(sums)).astype(counts.dtype) + (counts > 0)
    enough = size >= jnp.sum(counts > 0)

    def by_quotas(quotas: jax.Array, spread: bool, chances: Any = 1.0) -> Any:
        return subset.found(by_class.rank < quotas[labels], labels, spread, chances)

    def where_enough(mask: jax.Array, few: jax.Array, chances: jax.Array) -> Any:
        mask = jnp.where(enough, mask, by_class.rank < few[labels])
        return subset.found(mask, labels, True, jnp.where(enough, 1.0, chances))

    random, fixed = (
        systematic(counts, size, x, k) for x, k in ((start, shuffled), (half, jnp.arange(num_classes)))
    )
    share = jnp.minimum(1.0, size * counts / labels.shape[0])
    random_excess = one_each(counts, size, True, lambda x, k: systematic(x, k, start, shuffled))
    each = by_class.rank < one_each(counts, size, True, largest_remainder)[labels]
    capped_random, capped_fixed = capped(counts, size, start), capped(counts, size, half)
    largest = (_order(counts) < size).astype(counts.dtype)
    by_gain = _order(jnp.where(by_class.rank == 0, jnp.inf, by_class.gains)) < size
    whole, one_run = jnp.zeros_like(labels), _order(by_class.gains) < size
    drawn = jax.random.uniform(random_key, labels.shape)
    place = jnp.sum((labels[:, None] == labels[None, :]) & (drawn[None, :] < drawn[:, None]), axis=1)
    remainder = largest_remainder(counts, size)
    return {
        "S": (subset.slots(place < random[labels]), subset.valid.astype(jnp.float32)),
        "A": subset.found(greedy_order(values, whole, 1, size).rank < size, whole, False),
        "B": by_quotas(remainder, False),
        "Bs": by_quotas(remainder, True),
        "C": by_quotas(one_each(counts, size, False, largest_remainder), False),
        "Cx": by_quotas(one_each(counts, size, True, largest_remainder), False),
        "Cr": by_quotas(random_excess, True, jnp.where(enough, 1.0, share)),
        "D": by_quotas(random, False),
        "D0": by_quotas(fixed, False),
        "E": by_quotas(random, True),
        "E0": by_quotas(fixed, True),
        "F": by_quotas(random, True, share),
        "F0": by_quotas(fixed, True, share),
        "Fc": by_quotas(systematic(counts, size, start, linked), True, share),
        "W": where_enough(each, *capped_random),
        "W0": where_enough(each, *capped_fixed),
        "K": where_enough(each, largest, jnp.ones(num_classes)),
        "N": where_enough(each, *capped(masses, size, start)),
        "P": where_enough(by_gain, *capped_random),
        "G": subset.grouped(component),
        "Gc": subset.grouped(linked),
        "Hn": subset.found(one_run, labels, False),
        "Hs": subset.found(one_run, labels, True),
    }
