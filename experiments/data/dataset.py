"""What every data set looks like once it is loaded, and the arithmetic that all loaders share.

Imports in this folder point one way: dataset -> cache, idx, pixels -> digits, fashion_mnist, prepared,
tiny_imagenet, images, mnist_like, table -> __init__.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

CHUNK = 4096  # rows that are counted at once, so that the counts need no second copy of the data
TEST_EVERY = 5  # one row in five of every class is a test row, where the data have none
VALIDATION_EVERY = 10  # likewise of the training rows that are left
SEED = 0  # of the two splits
WHITE = 255

Part = tuple[np.ndarray, np.ndarray]  # inputs [n, ...], labels [n]
Fit = Literal["crop", "stretch"]


class DataError(Exception):
    """Data that is absent or damaged; the message names the file, the fault and the remedy."""


class OwnOptions(NamedTuple):
    """How the user's own data are read."""

    image_size: tuple[int, int] | None = None  # height and width of all images; None: as they are
    image_fit: Fit = "crop"  # how an image of another size is brought to it
    label: str = "label"  # column of the classes in a table
    ignore: tuple[str, ...] = ()  # columns of a table that are no features
    validation: bool = False  # take validation rows out of the training rows where there are none


class Dataset(NamedTuple):
    """Images or rows of numbers in memory; ``(inputs - mean) / std`` normalises them."""

    name: str
    train_inputs: np.ndarray  # [n, h, w, c], uint8, or [n, d], float32
    train_labels: np.ndarray  # [n], int32
    test_inputs: np.ndarray  # [t, ...], likewise
    test_labels: np.ndarray  # [t], int32
    validation_inputs: np.ndarray | None  # [v, ...], likewise; shares no row with the train set
    validation_labels: np.ndarray | None  # [v], int32
    num_classes: int
    mean: tuple[float, ...]  # c or d numbers, of the train set, in the units of the inputs
    std: tuple[float, ...]  # likewise; 1 where the train set does not vary
    augment: bool  # whether crops and flips are usual: true for the colour sets
    class_names: tuple[str, ...]  # num_classes words
    white: int = WHITE  # the brightest value that a pixel can have
    feature_names: tuple[str, ...] | None = None  # d words, of a table
    sha256: str | None = None  # of all rows, where a run folder is to know that they changed


def one_line(error: Exception) -> str:
    """Return the message of a foreign exception without line breaks, to stand in a sentence."""
    return " ".join(str(error).split()) or type(error).__name__


def make_dataset(
    name: str,
    train: Part,
    test: Part,
    class_names: tuple[str, ...],
    *,
    validation: Part | None = None,
    augment: bool = False,
    white: int = WHITE,
) -> Dataset:
    """Return the data set of (inputs, labels [n]) pairs, with train-set moments.

    Inputs are images [n, h, w, c], uint8, or features [n, d], float32.
    """
    moments = channel_moments if train[0].ndim == 4 else feature_moments
    mean, std = moments(train[0])
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
        std=tuple(value or 1.0 for value in std),
        augment=augment,
        class_names=class_names,
        white=white,
    )


def own_dataset(
    name: str,
    parts: dict[str, Part],
    class_names: tuple[str, ...],
    validation: bool,
    feature_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Return the user's own data, with test and validation rows split off where they are missing.

    Args:
      name: the folder or file, for sentences.
      parts: "train" and perhaps "test" and "validation".
      class_names: of the labels.
      validation: whether validation rows are wanted.
      feature_names: of a table.

    Raises:
      DataError: where there are too few rows to split.
    """
    found = dict(parts)
    splits = [("test", TEST_EVERY)] + ([("validation", VALIDATION_EVERY)] if validation else [])
    for part, every in splits:
        if part not in found:
            inputs, labels = found["train"]
            held = held_out(labels, every, SEED)
            if not held.any():
                raise DataError(
                    f"{name} has one row of each class for training but {part} rows are split off "
                    f"them; add rows, or give {part} rows of their own."
                )
            found["train"], found[part] = (inputs[~held], labels[~held]), (inputs[held], labels[held])
    digest = hashlib.sha256(json.dumps([class_names, feature_names]).encode())
    for part, (inputs, labels) in sorted(found.items()):
        digest.update(f"{part} {inputs.shape} {inputs.dtype}".encode())
        digest.update(np.ascontiguousarray(inputs).data)
        digest.update(labels.astype(np.int32).data)
    shape = found["train"][0].shape
    made = make_dataset(
        name,
        found["train"],
        found["test"],
        class_names,
        validation=found.get("validation"),
        augment=len(shape) == 4 and shape[-1] == 3,
    )
    return made._replace(feature_names=feature_names, sha256=digest.hexdigest())


def held_out(labels: np.ndarray, every: int, seed: int) -> np.ndarray:
    """Return which rows [n], bool, are held out: one in ``every`` of each class, drawn by a seed.

    A class of two rows or more gives at least one, and keeps at least one.

    >>> held = held_out(np.array([0] * 10 + [1] * 3 + [2]), 5, seed=0)
    >>> int(held[:10].sum()), int(held[10:13].sum()), int(held[13])
    (2, 1, 0)
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held[rows[: max(len(rows) // every, min(1, len(rows) - 1))]] = True
    return held


def classes_of(where: object, names: Sequence[str], remedy: str) -> tuple[str, ...]:
    """Return the distinct labels in order: numbers by value, else alphabetical.

    Raises:
      DataError: where there are fewer than two, or most rows have one of their own.

    >>> classes_of("a.csv", ["10", "9", "10", "9"], "correct them")
    ('9', '10')
    """
    found = sorted(set(names))
    if len(found) < 2:
        raise DataError(
            f"{where} has the labels {', '.join(found) or 'none'} but must have at least two; {remedy}."
        )
    if len(found) > max(2, len(names) // 2):
        raise DataError(
            f"{where} has {len(found)} different labels in {len(names)} rows but a class must have "
            f"several rows; {remedy}."
        )
    try:
        values = {name: float(name) for name in found}
    except ValueError:
        return tuple(found)
    if np.isfinite([*values.values()]).all():
        found.sort(key=values.__getitem__)
    return tuple(found)


def numbered(where: object, names: Sequence[str], class_names: tuple[str, ...]) -> np.ndarray:
    """Return the places [n], int32, of labels among the classes.

    Raises:
      DataError: where a label is none of them.

    >>> numbered("a.csv", ["y", "x"], ("x", "y"))
    array([1, 0], dtype=int32)
    """
    places = {name: place for place, name in enumerate(class_names)}
    unknown = sorted(set(names) - set(places))
    if unknown:
        raise DataError(
            f"{where} has the label {unknown[0]!r} but the training data only {', '.join(class_names)};"
            " correct the label or add training rows."
        )
    return np.array([places[name] for name in names], np.int32)


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


def feature_moments(inputs: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation, in float64, of every feature of [n, d].

    >>> feature_moments(np.array([[0, 1], [4, 1]], np.float32))
    ((2.0, 1.0), (2.0, 0.0))
    """
    mean = inputs.mean(axis=0, dtype=np.float64)
    return tuple(mean.tolist()), tuple(inputs.std(axis=0, dtype=np.float64).tolist())


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
