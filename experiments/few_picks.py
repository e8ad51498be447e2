"""Which picks a mini-batch coreset should make when there are fewer than two for a class.

    python -m experiments.few_picks --cifar cifar10-jpeg.tar.xz --out runs/few_picks

A subset of ``r`` examples is drawn at random, stratified by class, and ``m`` of them are chosen as
weighted medoids of their logit gradients. Where every class has a few picks, facility location runs
class by class; this script compares rules for where the picks do not suffice for that (``RULES``).

A perceptron with one hidden layer is trained by SGD; at several points of its training many subsets
are drawn, every rule chooses out of each of them, and the gradient of the weighted picks (weights
divided by their sum) is compared with that of the whole data and with that of the subset: in all
parameters, and in the logits alone. The measure is the mean of ``|g - G|^2``, over that of stratified
random batches of ``m``. *Bias* is ``|E g - G|^2 / |G|^2``, estimated without bias as
``(|mean - G|^2 - variance / draws) / |G|^2``; ``variance / draws / |G|^2`` stands beside it as "noise".

Data: Fashion-MNIST from its Debian package, and CIFAR-10 as JPEG, averaged over 2 x 2 pixels, where
``--cifar`` names the archive of ``train/CLASS/NNNN.jpg``. Fine classes are clusters of pixels (k-means)
within each class, numbered at random. Writes ``few_picks.json`` and ``few_picks.md``, and every point
to ``few_picks.jsonl`` as soon as it is measured: the same command goes on with those that are missing.
"""

import dataclasses
import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax.report import append_line, read_lines, table
from crest_jax.streams import make_strata, next_subset, open_stream
from experiments.compare import command_line
from experiments.config import UserError
from experiments.data.fashion_mnist import read_originals
from experiments.run_folder import commit, held_folder, new_folder
from experiments.train import one_sentence

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
MEASURE, CHOSEN = "stratified", "W"
TARGETS = ("all/full", "logits/full", "all/subset", "logits/subset")


@dataclasses.dataclass(frozen=True)
class FewPicksConfig:
    """What to measure."""

    out: Path = Path("runs/few_picks")
    """A new or empty folder for the results, or one with a part of them."""
    cifar: Path | None = None
    """The archive of CIFAR-10 as JPEG files; None leaves its settings out."""
    fashion_dir: Path | None = None
    """The four IDX files of Fashion-MNIST; None: of the Debian package."""
    draws: int = 100
    """Subsets at each point of training."""
    seeds: tuple[int, ...] = (0, 1)
    """Of the training runs."""
    epochs: tuple[float, ...] = (0.2, 1.0, 5.0)
    """Points of training at which to measure."""
    hidden: int = 256
    """Width of the hidden layer."""
    learning_rate: float = 0.1
    """Of SGD without momentum, batches of 128."""
    only: str = ""
    """Measure only the settings whose names contain this."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.draws < 2:
            raise UserError(f"--draws is {self.draws} but must be at least 2; 100 is usual.")
        if not self.seeds:
            raise UserError("--seeds is empty but must name at least one seed; 0 1 is usual.")
        if not self.epochs or min(self.epochs) < 0 or list(self.epochs) != sorted(set(self.epochs)):
            raise UserError(
                f"--epochs is {self.epochs} but must be rising numbers, 0 or above; 0.2 1 5 is usual."
            )
        if self.hidden < 1 or not self.learning_rate > 0:
            raise UserError(
                f"--hidden is {self.hidden} and --learning-rate {self.learning_rate} but both must be "
                "above 0; raise them."
            )
        if self.cifar is not None and not self.cifar.is_file():
            raise UserError(f"--cifar {self.cifar} is no file but must be the archive; check the path.")
        if not any(self.only in name for name in SETTINGS):
            raise UserError(
                f"--only is {self.only!r} but must be a part of one of {', '.join(SETTINGS)}."
            )


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, and the sizes of subsets and batches."""

    source: str
    split: int  # clusters of each class
    shape: str  # of the class sizes: as they are, "balanced" or "geometric"
    sizes: tuple[tuple[int, int], ...]  # (r, m)


_SMALL = tuple((r, m) for r in (64, 128) for m in (8, 12, 16))
SETTINGS = {
    "fashion 200": Setting("fashion", 20, "", tuple((1000, m) for m in (64, 128, 200, 256, 400))),
    "fashion 200 balanced": Setting(
        "fashion", 20, "balanced", tuple((1000, m) for m in (64, 128, 200, 256))
    ),
    "fashion 100 geometric": Setting(
        "fashion", 10, "geometric", tuple((1024, m) for m in (32, 64, 128, 150, 300))
    ),
    "fashion 10": Setting("fashion", 1, "", _SMALL),
    "fashion 10 geometric": Setting("fashion", 1, "geometric", _SMALL),
    "cifar 10": Setting("cifar", 1, "", _SMALL),
    "cifar 100": Setting("cifar", 10, "", tuple((r, m) for r in (512, 1024) for m in (64, 128, 150))),
}


# Data.


class Data(NamedTuple):
    """Examples."""

    inputs: np.ndarray  # [n, k], float32
    labels: np.ndarray  # [n]
    num_classes: int


def read_source(name: str, config: FewPicksConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [n, k], in [0, 1], and labels [n] of the training rows."""
    if name == "fashion":
        (images, labels), _ = read_originals(config.fashion_dir)
        return images.reshape(len(images), -1).astype(np.float32) / 255, labels.astype(np.int32)
    from PIL import Image

    assert config.cifar is not None
    names: dict[str, int] = {}
    rows, classes = [], []
    with tarfile.open(config.cifar) as archive:
        for member in tqdm(archive, desc="cifar", unit="file", leave=False):
            parts = Path(member.name).parts
            if len(parts) < 3 or parts[-3] != "train" or not member.isfile():
                continue
            file = archive.extractfile(member)
            assert file is not None
            image = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"), np.float32)
            rows.append(image.reshape(16, 2, 16, 2, 3).mean((1, 3)).reshape(-1) / 255)
            classes.append(names.setdefault(parts[-2], len(names)))
    if not rows:
        raise UserError(f"--cifar {config.cifar} holds no train/CLASS/NNNN.jpg; name another archive.")
    return np.stack(rows), np.asarray(classes, np.int32)


def fine_classes(inputs: np.ndarray, labels: np.ndarray, split: int) -> np.ndarray:
    """Split each class into clusters of its inputs, numbered at random over all classes."""
    if split == 1:
        return labels
    from sklearn.cluster import KMeans

    fine = np.empty_like(labels)
    for label in tqdm(range(labels.max() + 1), desc="k-means", leave=False):
        own = labels == label
        kmeans = KMeans(split, n_init=1, max_iter=30, random_state=0)
        fine[own] = label * split + kmeans.fit_predict(inputs[own])
    return np.random.default_rng(0).permutation(fine.max() + 1)[fine].astype(np.int32)


def shaped_rows(labels: np.ndarray, shape: str) -> np.ndarray:
    """Return the rows that make the class sizes equal, or geometric, 100:1 down by size.

    >>> labels = np.repeat([0, 1], [300, 200])
    >>> [np.bincount(labels[shaped_rows(labels, x)]).tolist() for x in ("balanced", "geometric")]
    [[200, 200], [300, 3]]
    """
    sizes = np.bincount(labels)
    wanted = sizes.copy()
    if shape == "balanced":
        wanted[:] = sizes.min()
    elif shape == "geometric":
        order = np.argsort(-sizes, kind="stable")
        steps = np.arange(len(sizes)) / (len(sizes) - 1)
        wanted[order] = np.minimum(sizes[order], np.round(sizes.max() * 100.0**-steps))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:k] for c, k in enumerate(wanted)]))


# The network, and gradients of weighted sets of its examples.


class Network(NamedTuple):
    """Parameters of a perceptron with one hidden layer."""

    first: jax.Array  # [k, h]
    first_bias: jax.Array
    second: jax.Array  # [h, c]
    second_bias: jax.Array


class Backward(NamedTuple):
    """What gradients are made of, for every example."""

    inputs: jax.Array  # [n, k]
    hidden: jax.Array  # [n, h]
    first: jax.Array  # [n, h], gradient of the loss in the hidden layer before its ReLU
    second: jax.Array  # [n, c], gradient of the loss in the logits


def init(key: jax.Array, width: int, hidden: int, num_classes: int) -> Network:
    """Return parameters as He et al. draw them."""
    one, two = jax.random.split(key)
    first = jax.random.normal(one, (width, hidden)) * math.sqrt(2 / width)
    second = jax.random.normal(two, (hidden, num_classes)) * math.sqrt(1 / hidden)
    return Network(first, jnp.zeros(hidden), second, jnp.zeros(num_classes))


@jax.jit
def backward(network: Network, inputs: jax.Array, labels: jax.Array) -> Backward:
    """Return the parts of the gradient of each example's loss."""
    hidden = jax.nn.relu(inputs @ network.first + network.first_bias)
    logits = hidden @ network.second + network.second_bias
    second = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1])
    first = jnp.where(hidden > 0, second @ network.second.T, 0.0)
    return Backward(inputs, hidden, first, second)


def gradient(parts: Backward, weights: jax.Array) -> Network:
    """Return the gradient of the weighted mean loss of examples."""
    weights = (weights / jnp.sum(weights))[:, None]
    first, second = weights * parts.first, weights * parts.second
    return Network(
        parts.inputs.T @ first, jnp.sum(first, 0), parts.hidden.T @ second, jnp.sum(second, 0)
    )


@jax.jit
def epoch_steps(
    network: Network, inputs: jax.Array, labels: jax.Array, rows: jax.Array, rate: float
) -> Network:
    """Take one step of SGD on each row of ``rows`` [steps, b]."""

    def step(network: Network, rows: jax.Array) -> tuple[Network, None]:
        found = gradient(backward(network, inputs[rows], labels[rows]), jnp.ones(rows.shape[0]))
        return jax.tree.map(lambda p, g: p - rate * g, network, found), None

    return jax.lax.scan(step, network, rows)[0]


# Rules. Everything has static shapes, as in the library.


def largest_remainder(counts: jax.Array, size: jax.Array) -> jax.Array:
    """Split ``size`` in proportion to ``counts`` [c]; equal remainders go to the lower class.

    >>> largest_remainder(jnp.array([5, 5, 10]), jnp.int32(10)).tolist()
    [3, 2, 5]
    """
    product = counts * size
    total = jnp.maximum(jnp.sum(counts), 1)
    floors, rest = product // total, product % total
    rank = jnp.argsort(jnp.argsort(-rest, stable=True))
    return floors + (rank < size - jnp.sum(floors))


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


def choose(
    key: jax.Array, embeddings: jax.Array, labels: jax.Array, size: jax.Array, most: int,
    num_classes: int,
) -> dict[str, tuple[jax.Array, jax.Array]]:  # fmt: skip
    """Return picks and weights [most] by every rule that chooses medoids out of a subset [r].

    There are ``size`` picks, at most ``most``; the weights of the other places are 0.
    """
    rows = labels.shape[0]
    valid = jnp.arange(most) < size
    values = distances(embeddings)
    counts = jnp.bincount(labels, length=num_classes)
    means = jax.ops.segment_sum(embeddings, labels, num_classes) / jnp.maximum(counts, 1)[:, None]
    longest = jnp.max(counts)
    by_class = greedy_order(values, labels, num_classes, longest)
    start_key, order_key, random_key = jax.random.split(key, 3)
    start, half = jax.random.uniform(start_key), jnp.float32(0.5)
    by_number = jnp.arange(num_classes)
    shuffled = jax.random.permutation(order_key, num_classes)
    component, linked = first_component(means, counts), chain(means, counts)
    apart = jnp.linalg.norm(embeddings - jnp.mean(embeddings, 0), axis=1)
    sums = jax.ops.segment_sum(apart, labels, num_classes)
    # Whole numbers, so that the rounding is exact; above 0 where a class has rows.
    masses = jnp.round(1e6 * sums / jnp.sum(sums)).astype(counts.dtype) + (counts > 0)

    def slots(mask: jax.Array) -> jax.Array:
        return jnp.nonzero(mask, size=most, fill_value=0)[0]

    def owned(picks: jax.Array, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the rows of its own group, and of groups without a pick, nearest to each pick."""
        near = jnp.where(valid, values[:, picks], jnp.inf)
        same = (groups[:, None] == groups[picks][None, :]) & valid
        covered = jnp.any(same, axis=1)
        nearest = jnp.argmin(jnp.where(same | ~covered[:, None], near, jnp.inf), axis=1)
        nearest = nearest.at[jnp.where(valid, picks, rows)].set(jnp.arange(most), mode="drop")
        zeros = jnp.zeros(most)
        return zeros.at[nearest].add(covered), zeros.at[nearest].add(~covered)

    def found(mask: jax.Array, groups: jax.Array, spread: bool, chances: Any = 1.0) -> Any:
        picks = slots(mask)
        own, orphans = owned(picks, groups)
        chances = jnp.broadcast_to(chances, counts.shape)[labels[picks]]
        return picks, (own if spread else own + orphans) / chances

    def by_quotas(quotas: jax.Array, spread: bool, chances: Any = 1.0) -> Any:
        return found(by_class.rank < quotas[labels], labels, spread, chances)

    def grouped(order: jax.Array) -> Any:
        groups = jnp.maximum(1, size // 2)
        running = jnp.cumsum(counts[order])
        middle = 2 * running - counts[order]  # twice the place of the middle row
        of_class = (
            jnp.zeros_like(order).at[order].set(jnp.clip(middle * groups // (2 * rows), 0, groups - 1))
        )
        group = of_class[labels]
        quotas = largest_remainder(jnp.bincount(group, length=max(1, most // 2)), size)
        greedy = greedy_order(values, group, max(1, most // 2), jnp.max(quotas))
        return found(greedy.rank < quotas[group], group, False)

    def rounded(start: jax.Array, order: jax.Array) -> jax.Array:
        return systematic(counts, size, start, order)

    enough = size >= jnp.sum(counts > 0)

    def where_enough(
        mask: jax.Array, few: jax.Array, chances: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        mask = jnp.where(enough, mask, by_class.rank < few[labels])
        return found(mask, labels, True, jnp.where(enough, 1.0, chances))

    remainder = largest_remainder(counts, size)
    random, fixed = rounded(start, shuffled), rounded(half, by_number)
    share = jnp.minimum(1.0, size * counts / rows)
    random_excess = one_each(counts, size, True, lambda x, k: systematic(x, k, start, shuffled))
    each = by_class.rank < one_each(counts, size, True, largest_remainder)[labels]
    capped_random, capped_fixed = capped(counts, size, start), capped(counts, size, half)
    largest = (jnp.argsort(jnp.argsort(-counts, stable=True)) < size).astype(counts.dtype)
    first = jnp.where(by_class.rank == 0, jnp.inf, by_class.gains)
    by_gain = jnp.argsort(jnp.argsort(-first, stable=True)) < size
    whole = jnp.zeros_like(labels)
    one_run = jnp.argsort(jnp.argsort(-by_class.gains, stable=True)) < size
    drawn = jax.random.uniform(random_key, (rows,))
    place = jnp.sum((labels[:, None] == labels[None, :]) & (drawn[None, :] < drawn[:, None]), axis=1)
    return {
        "S": (slots(place < random[labels]), valid.astype(jnp.float32)),
        "A": found(greedy_order(values, whole, 1, size).rank < size, whole, False),
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
        "Fc": by_quotas(rounded(start, linked), True, share),
        "W": where_enough(each, *capped_random),
        "W0": where_enough(each, *capped_fixed),
        "K": where_enough(each, largest, jnp.ones(num_classes)),
        "N": where_enough(each, *capped(masses, size, start)),
        "P": where_enough(by_gain, *capped_random),
        "G": grouped(component),
        "Gc": grouped(linked),
        "Hn": found(one_run, labels, False),
        "Hs": found(one_run, labels, True),
    }


# Measuring.


def full_parts(network: Network, data: Data) -> tuple[Backward, Network]:
    """Return the parts of the gradients of all examples, and the gradient of their mean loss."""
    chunks = [slice(i, i + 5000) for i in range(0, len(data.labels), 5000)]
    found = [backward(network, data.inputs[x], data.labels[x]) for x in chunks]
    total: Any = jax.tree.map(lambda p: np.zeros(p.shape), network)
    for part in found:
        count = part.hidden.shape[0]
        one = gradient(part, jnp.ones(count))
        total = jax.tree.map(lambda t, g, k=count: t + k * np.asarray(g, np.float64), total, one)
    parts = Backward(
        jnp.asarray(data.inputs), *(jnp.concatenate([x[i] for x in found]) for i in (1, 2, 3))
    )
    return parts, jax.tree.map(lambda t: jnp.asarray(t / len(data.labels), jnp.float32), total)


@partial(jax.jit, static_argnames=("size", "most", "num_classes"))
def draw_batches(
    keys: tuple[jax.Array, jax.Array], strata: Any, one: Any, size: int, most: int, num_classes: int
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return rows [most] and weights [most] of a random and of a stratified batch of ``size``."""
    weights = jnp.pad(jnp.ones(size), (0, most - size))
    random = next_subset(open_stream(keys[0], 1), one, size)[1]
    stratified = next_subset(open_stream(keys[1], num_classes), strata, size)[1]
    return {
        "random": (jnp.pad(random, (0, most - size)), weights),
        "stratified": (jnp.pad(stratified, (0, most - size)), weights),
    }


@partial(jax.jit, static_argnames=("subset_size", "most", "num_classes"))
def draw(
    keys: tuple[jax.Array, jax.Array], parts: Backward, classes: jax.Array, strata: Any,
    batches: dict[str, tuple[jax.Array, jax.Array]], size: jax.Array, subset_size: int, most: int,
    num_classes: int,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    """Return a subset's gradient, and every rule's rows and weights [rules, most]."""
    subset = next_subset(open_stream(keys[0], num_classes), strata, subset_size)[1]
    chosen = choose(keys[1], parts.second[subset], classes[subset], size, most, num_classes)
    batches = batches | {name: (subset[picks], weights) for name, (picks, weights) in chosen.items()}
    whole = gradient(Backward(*(x[subset] for x in parts)), jnp.ones(subset_size))
    rows, weights = (jnp.stack([batches[name][i] for name in RULES]) for i in (0, 1))
    return whole, rows, weights


def squares(x: Network, y: Network) -> jax.Array:
    """Return the squared distance of gradients, in all parameters and in the logits alone, [2]."""
    each = [jnp.sum(jnp.square(a - b)) for a, b in zip(x, y, strict=True)]
    return jnp.stack([sum(each[1:], each[0]), each[3]])


@jax.jit
def compare_gradients(
    sums: Network, parts: Backward, full: Network, whole: Network, rows: jax.Array, weights: jax.Array
) -> tuple[Network, jax.Array]:
    """Add each rule's gradient to its sum, and return squared errors [rules, 4]."""

    def rule(args: tuple[Network, jax.Array, jax.Array]) -> tuple[Network, jax.Array]:
        total, rows, weights = args
        found = gradient(Backward(*(x[rows] for x in parts)), weights)
        errors = jnp.concatenate([squares(found, full), squares(found, whole)])
        return jax.tree.map(jnp.add, total, found), errors

    return jax.lax.map(rule, (sums, rows, weights))


def measure_point(
    key: jax.Array, network: Network, data: Data, sizes: tuple[tuple[int, int], ...], draws: int,
    strata: Any, one: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one line for each pair of sizes at one point of training."""
    parts, full = full_parts(network, data)
    classes = jnp.asarray(data.labels)
    norms = np.asarray(squares(full, jax.tree.map(jnp.zeros_like, full)), np.float64)
    most, number = max(m for _, m in sizes), data.num_classes
    lines = []
    for subset_size, size in sizes:
        sums = jax.tree.map(lambda x: jnp.zeros((len(RULES), *x.shape)), full)
        errors = []
        for index in tqdm(range(draws), desc=f"r {subset_size}, m {size}", leave=False):
            own = jax.random.fold_in(jax.random.fold_in(key, subset_size * 10_000 + size), index)
            keys = jax.random.split(own, 4)
            batches = draw_batches((keys[1], keys[2]), strata, one, size, most, number)
            chosen = draw(
                (keys[0], keys[3]), parts, classes, strata, batches, jnp.int32(size), subset_size, most,
                number,
            )  # fmt: skip
            sums, found = compare_gradients(sums, parts, full, *chosen)
            errors.append(np.asarray(found, np.float64))
        off = np.stack([
            np.asarray(squares(jax.tree.map(lambda s, k=i: s[k] / draws, sums), full), np.float64)
            for i in range(len(RULES))
        ])  # fmt: skip
        sizes_ = {"r": subset_size, "m": size, "draws": draws}
        lines.append(sizes_ | summarise_draws(np.stack(errors), off, norms))
    return lines


def ratios(errors: np.ndarray, to: str) -> dict[str, list[float]]:
    """Return each rule's mean of errors [draws, rules] over that of the rule ``to``.

    With it stands the standard error, that of draws, to first order, rules paired by draw.
    """
    means, base = errors.mean(0), list(RULES).index(to)
    middle = means / means[base]
    spread = errors - middle * errors[:, [base]]
    error = spread.std(0, ddof=1) / math.sqrt(len(errors)) / means[base]
    return {name: [digits(middle[i]), digits(error[i])] for i, name in enumerate(RULES)}


def digits(value: float) -> float:
    """Keep four digits.

    >>> digits(1.23456)
    1.235
    """
    return float(f"{value:.4g}")


def summarise_draws(errors: np.ndarray, off: np.ndarray, norms: np.ndarray) -> dict[str, Any]:
    """Return ratios with standard errors, and biases, of errors [draws, rules, 4].

    ``off`` [rules, 2] are the squared distances of the mean gradients from the full one, of squared
    norms [2].
    """
    means = errors.mean(0)
    noise = (means[:, :2] - off) / (len(errors) - 1)
    base = list(RULES).index(MEASURE)
    return {
        "over_stratified": {x: ratios(errors[:, :, j], MEASURE) for j, x in enumerate(TARGETS)},
        "over_chosen": {x: ratios(errors[:, :, j], CHOSEN) for j, x in enumerate(TARGETS[:1])},
        "stratified_over_full_norm": [digits(x) for x in means[base, :2] / norms],
        "bias": {
            kind: {
                name: [digits((off[i, j] - noise[i, j]) / norms[j]), digits(noise[i, j] / norms[j])]
                for i, name in enumerate(RULES)
            }
            for j, kind in enumerate(("all", "logits"))
        },
    }


def measure(config: FewPicksConfig, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Measure what is not among ``lines``; yield a line for each point and pair of sizes."""
    sources: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    fine: dict[tuple[str, int], np.ndarray] = {}
    made = {"command": command_line("few_picks"), "commit": commit(), **machine()}
    there = {(line["setting"], line["seed"], line["epochs"]) for line in lines}
    wanted = [
        (name, seed)
        for name, setting in SETTINGS.items()
        if config.only in name and (setting.source != "cifar" or config.cifar is not None)
        for seed in config.seeds
    ]
    bar = tqdm(total=len(wanted) * len(config.epochs), unit="point")
    for name, seed in wanted:
        bar.set_postfix_str(f"{name}, seed {seed}")
        if all((name, seed, epochs) in there for epochs in config.epochs):
            bar.update(len(config.epochs))
            continue
        setting = SETTINGS[name]
        if setting.source not in sources:
            sources[setting.source] = read_source(setting.source, config)
        inputs, labels = sources[setting.source]
        kind = setting.source, setting.split
        if kind not in fine:
            fine[kind] = fine_classes(inputs, labels, setting.split)
        rows = shaped_rows(fine[kind], setting.shape)
        data = Data(inputs[rows], fine[kind][rows], int(fine[kind].max()) + 1)
        strata = make_strata(data.labels, data.num_classes)
        one = make_strata(np.zeros_like(data.labels), 1)
        class_sizes = np.bincount(data.labels)
        about = {
            "setting": name, "classes": data.num_classes, "rows": len(rows),
            "smallest_class": int(class_sizes.min()), "largest_class": int(class_sizes.max()),
        }  # fmt: skip
        device_data = jnp.asarray(data.inputs), jnp.asarray(data.labels)
        init_key, key = jax.random.split(jax.random.key(seed))
        rng = np.random.default_rng(seed)
        network = init(init_key, data.inputs.shape[1], config.hidden, data.num_classes)
        each = len(rows) // 128
        whole = math.ceil(max(config.epochs))
        order = [rng.permutation(len(rows))[: each * 128].reshape(each, 128) for _ in range(whole)]
        path = np.concatenate(order) if order else np.empty((0, 128), int)
        taken = 0
        for epochs in config.epochs:
            upto = round(epochs * each)
            if upto > taken:
                network = epoch_steps(
                    network, *device_data, jnp.asarray(path[taken:upto]), config.learning_rate
                )
            taken = upto
            if (name, seed, epochs) not in there:
                own_key = jax.random.fold_in(key, upto)
                for line in measure_point(
                    own_key, network, data, setting.sizes, config.draws, strata, one
                ):
                    yield about | {"seed": seed, "epochs": epochs} | line | made
            bar.update()
    bar.close()


def machine() -> dict[str, Any]:
    """Return what ran."""
    return {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}


def pooled(pairs: list[list[float]]) -> tuple[float, float]:
    """Return the mean of estimates and its standard error, of [estimate, standard error] pairs.

    >>> pooled([[1.0, 0.3], [2.0, 0.4]])
    (1.5, 0.25)
    """
    values = np.array(pairs)
    return float(values[:, 0].mean()), float(np.sqrt(np.sum(values[:, 1] ** 2)) / len(values))


def summarise(lines: list[dict[str, Any]], target: str, to: str) -> str:
    """Return the table of ratios, means over points and seeds."""
    cells: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault((line["setting"], line["r"], line["m"]), []).append(line)
    shown = [rule for rule in RULES if rule != MEASURE]
    rows = []
    for (setting, r, m), own in cells.items():
        found = [pooled([line[to][target][rule] for line in own]) for rule in shown]
        best = min(x for x, _ in found)
        rows.append([
            setting, f"{r}", f"{m}",
            *(f"{'*' if x == best else ''}{x:.2f} ± {e:.2f}" for x, e in found),
        ])  # fmt: skip
    return table(["data, classes", "r", "m", *shown], rows)


def summarise_bias(lines: list[dict[str, Any]], kind: str) -> str:
    """Return the table of biases, means over points and seeds, and of their largest noise."""
    cells: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault((line["setting"], line["r"], line["m"]), []).append(line)
    rows = []
    for (setting, r, m), own in cells.items():
        means = [pooled([line["bias"][kind][rule] for line in own]) for rule in RULES]
        noise = np.mean([[line["bias"][kind][x][1] for x in RULES] for line in own], 0)
        rows.append([
            setting, f"{r}", f"{m}", *(f"{x:.3f}" for x, _ in means),
            f"{noise.min():.3f} to {noise.max():.3f}",
        ])  # fmt: skip
    return table(["data, classes", "r", "m", *RULES, "noise"], rows)


def report(lines: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    parts = ["\n".join(f"- {name}: {text}" for name, text in RULES.items()) + "\n"]
    for target in TARGETS:
        kind, of = target.split("/")
        what = "all parameters" if kind == "all" else "the logits alone"
        of = "the whole data" if of == "full" else "the subset"
        parts.append(
            f"## Squared error to the gradient of {of}, {what}, over that of stratified batches\n\n"
            f"{summarise(lines, target, 'over_stratified')}\n"
        )
    parts.append(
        f"## The same to the gradient of the whole data, all parameters, over that of rule {CHOSEN}, "
        f"paired by draw\n\n{summarise(lines, 'all/full', 'over_chosen')}\n"
    )
    for kind, what in (("all", "all parameters"), ("logits", "the logits alone")):
        parts.append(
            f"## Squared bias over the squared norm of the full gradient, {what}, noise subtracted\n\n"
            f"{summarise_bias(lines, kind)}\n"
        )
    return "\n".join(parts)


def sources_of(lines: list[dict[str, Any]]) -> str:
    """Return the sentence that says how lines were made."""
    commands = list(dict.fromkeys(f"`{line['command']}`" for line in lines))
    commits = ", ".join(sorted({str(line["commit"]) for line in lines}))
    draws = ", ".join(map(str, sorted({line["draws"] for line in lines})))
    return (
        f"{', then '.join(commands)} at commit {commits}, on {lines[0]['device']}, "
        f"{lines[0]['cores']} cores; draws at each point: {draws}"
    )


EXPLANATION = """
Means over points of training and seeds; ± is the standard error from draws; * marks the smallest. A
batch has m examples, a subset r. An orphan is a row of the subset whose class has no pick.
"""


def main() -> None:
    """Read the command line, measure, and write the files."""
    with one_sentence("interrupted; the same command goes on with the points that are missing."):
        config = tyro.cli(FewPicksConfig, description=__doc__)
        with held_folder(config.out):
            kept = config.out / "few_picks.jsonl"
            if not kept.exists():
                new_folder(config.out)
            lines = read_lines(kept) if kept.exists() else []
            options = {"hidden": config.hidden, "learning_rate": config.learning_rate}
            if any({x: line[x] for x in options} != options for line in lines):
                raise UserError(
                    f"--out {config.out} holds points with another --hidden or --learning-rate, which "
                    "do not go together; choose another folder."
                )
            for line in measure(config, list(lines)):
                lines.append(line | options)
                append_line(kept, lines[-1])
            rows = ",\n".join(json.dumps(line) for line in lines)
            text = f'{{"rules": {json.dumps(RULES)},\n"lines": [\n{rows}\n]}}\n'
            (config.out / "few_picks.json").write_text(text, encoding="utf-8")
            found = f"{sources_of(lines)}\n{EXPLANATION}\n{report(lines)}"
            (config.out / "few_picks.md").write_text(found, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
