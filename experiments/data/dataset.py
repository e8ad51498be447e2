"""What every data set looks like once it is loaded, and the arithmetic that all loaders share.

Imports in this folder point one way: dataset -> idx -> digits, fashion_mnist, prepared,
tiny_imagenet -> __init__.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

CHUNK = 4096  # rows that are counted at once, so that the counts need no second copy of the data


class DataError(Exception):
    """Data that is absent or damaged; the message names the file, the fault and the remedy."""


class Dataset(NamedTuple):
    """Images in memory, unscaled; subtract ``mean`` and divide by ``std`` to normalise them."""

    name: str
    train_inputs: np.ndarray  # [n, h, w, c], uint8
    train_labels: np.ndarray  # [n], int32
    test_inputs: np.ndarray  # [t, h, w, c], uint8
    test_labels: np.ndarray  # [t], int32
    validation_inputs: np.ndarray | None  # [v, h, w, c], uint8; shares no row with the train set
    validation_labels: np.ndarray | None  # [v], int32
    num_classes: int
    mean: tuple[float, ...]  # c numbers, of the train set, in the units of the inputs
    std: tuple[float, ...]  # c numbers, likewise
    augment: bool  # whether crops and flips are usual: true for the colour sets
    class_names: tuple[str, ...]  # num_classes words


def one_line(error: Exception) -> str:
    """Return the message of a foreign exception without line breaks, to stand in a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def make_dataset(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: tuple[str, ...],
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    augment: bool = False,
) -> Dataset:
    """Return the data set of (inputs [n, h, w, c], labels [n]) pairs, with train-set moments."""
    mean, std = channel_moments(train[0])
    inputs, labels = (None, None) if validation is None else validation
    return Dataset(
        name=name,
        train_inputs=train[0],
        train_labels=train[1].astype(np.int32),
        test_inputs=test[0],
        test_labels=test[1].astype(np.int32),
        validation_inputs=inputs,
        validation_labels=None if labels is None else labels.astype(np.int32),
        num_classes=len(class_names),
        mean=mean,
        std=std,
        augment=augment,
        class_names=class_names,
    )


def channel_moments(inputs: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation of every channel of uint8 [n, h, w, c].

    The sums are exact integers, so the result depends on no order of summation.

    >>> channel_moments(np.array([0, 0, 4, 4], np.uint8).reshape(2, 2, 1, 1))
    ((2.0,), (2.0,))
    """
    channels = inputs.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(inputs), CHUNK):
        chunk = inputs[start : start + CHUNK]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256, dtype=np.int64)
    pixels = int(counts[0].sum())
    sums = [int(row @ values) for row in counts]
    squares = [int(row @ values**2) for row in counts]
    return (
        tuple(first / pixels for first in sums),
        tuple(
            math.sqrt(pixels * second - first**2) / pixels
            for first, second in zip(sums, squares, strict=True)
        ),
    )


def rows_per_class(labels: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return, ascending, the rows of the ``start``-th to before the ``stop``-th of every class.

    >>> rows_per_class(np.array([1, 0, 1, 1, 0]), 0, 2)
    array([0, 1, 2, 4])
    """
    picked = [np.flatnonzero(labels == label)[start:stop] for label in np.unique(labels)]
    return np.sort(np.concatenate(picked))


def cache_dir() -> Path:
    """Return the folder of what can be made again: ``$CREST_JAX_CACHE`` or ``~/.cache/crest_jax``."""
    return Path(os.environ.get("CREST_JAX_CACHE", "~/.cache/crest_jax")).expanduser()


def default_data_dir() -> Path:
    """Return the folder of other data sets: ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def is_the_file(path: Path, sha256: str) -> bool:
    """Return whether a file is there and has this SHA-256."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
