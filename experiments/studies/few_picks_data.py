"""Data and network of ``few_picks``."""

import dataclasses
import io
import math
import tarfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.data.fashion_mnist import read_originals
from experiments.harness.cli import UserError


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


class Network(NamedTuple):
    """Parameters of an MLP with one hidden layer."""

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
