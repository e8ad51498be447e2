"""CIFAR-10 and CIFAR-100 from the ``array_record`` files of TensorFlow Datasets.

Reading needs no TensorFlow. TFDS shuffles the rows as it prepares them; sorting by the ``id`` that
every record carries gives back the order of the original files.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.data.dataset import DataError, Dataset, default_data_dir, make_dataset, one_line

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
SHAPE = (32, 32, 3)
CHUNK = 500  # records read at once


def load_prepared(name: str, data_dir: Path | None = None) -> Dataset:
    """Return ``cifar10`` or ``cifar100`` from ``<data_dir>/<name>/<version>``, prepared before.

    Raises:
        DataError: if the folder is absent, half-made, in another format or damaged.
    """
    folder = find_version(name, default_data_dir() if data_dir is None else data_dir)
    remedy = f"remove {folder} and run python -m experiments.prepare {name} again"
    _check_files(name, folder, remedy)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is read with tensorflow-datasets, which cannot be imported ({error}); "
            "pip install 'crest_jax[experiments]'."
        ) from error
    try:
        builder = tfds.builder_from_directory(folder)
        class_names = tuple(builder.info.features["label"].names)
    except Exception as error:  # a damaged description fails anywhere in TFDS
        raise DataError(f"{folder} has a damaged description ({one_line(error)}); {remedy}.") from error
    if len(class_names) != NUM_CLASSES[name]:
        raise DataError(
            f"{folder} has {len(class_names)} classes, where {name} has {NUM_CLASSES[name]}; {remedy}."
        )
    train, test = (_read_split(builder, folder, split, remedy) for split in ("train", "test"))
    return make_dataset(name, train, test, class_names, augment=True)


def find_version(name: str, data_dir: Path) -> Path:
    """Return the newest version folder of ``name`` in ``data_dir``.

    Raises:
        DataError: if there is none; nothing is downloaded and no folder is made.
    """
    pattern = re.compile(r"\d+\.\d+\.\d+")
    folder = data_dir / name
    versions = [path for path in folder.glob("*") if pattern.fullmatch(path.name)]
    if not versions:
        raise DataError(
            f"{name} is not prepared: {folder} holds no version folder; name the folder above it "
            f"with --data.dir, or run python -m experiments.prepare {name} where TensorFlow and "
            "the network are at hand."
        )
    return max(versions, key=lambda path: tuple(int(part) for part in path.name.split(".")))


def _check_files(name: str, folder: Path, remedy: str) -> None:
    """Raise unless every shard that the description lists is there, before TFDS looks."""
    description = folder / "dataset_info.json"
    if not description.is_file():
        raise DataError(f"{folder} is half-made: it has no {description.name}; {remedy}.")
    try:
        info = json.loads(description.read_text())
        file_format = info["fileFormat"]
        shards = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{description} is damaged ({type(error).__name__}: {error}); {remedy}."
        ) from error
    if file_format != "array_record":
        raise DataError(
            f"{folder} is prepared as {file_format}, which only TensorFlow reads; run "
            f"python -m experiments.prepare {name} --data-dir DIR with another DIR."
        )
    for split in ("train", "test"):
        if shards.get(split, 0) == 0:
            raise DataError(f"{description} lists no rows for the split {split}; {remedy}.")
        for shard in range(shards[split]):
            path = folder / f"{name}-{split}.array_record-{shard:05d}-of-{shards[split]:05d}"
            if not path.is_file():
                raise DataError(f"{path} is not there, so {folder} is half-made; {remedy}.")


def _read_split(builder: Any, folder: Path, split: str, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        source = builder.as_data_source(split=split)
        inputs = np.empty((len(source), *SHAPE), np.uint8)
        labels = np.empty(len(source), np.int32)
        ids = []
        for start in tqdm(range(0, len(source), CHUNK), f"{builder.name} {split}", disable=None):
            rows = range(start, min(start + CHUNK, len(source)))
            for row, record in zip(rows, source.__getitems__(rows), strict=True):
                if record["image"].shape != SHAPE:
                    raise ValueError(f"an image has shape {record['image'].shape}, not {SHAPE}")
                inputs[row] = record["image"]
                labels[row] = record["label"]
                ids.append(record["id"])
    except Exception as error:  # TFDS, array_record and the PNG decoder share no exception
        files = folder / f"{builder.name}-{split}.array_record-*"
        raise DataError(f"{files} cannot be read ({one_line(error)}); {remedy}.") from error
    order = np.argsort(np.array(ids), kind="stable")
    return inputs[order], labels[order]
