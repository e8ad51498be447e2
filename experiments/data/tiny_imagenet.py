"""TinyImageNet (200 classes of 64x64 JPEG images) from its extracted archive.

The labels of its test folder were never published, so the validation folder serves as test set,
as is usual.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, Dataset, default_data_dir, make_dataset
from experiments.data.pixels import decoder, in_threads, read_image

ARCHIVE = "tiny-imagenet-200"
SIDE = 64
REMEDY = (
    f"extract http://cs231n.stanford.edu/{ARCHIVE}.zip afresh and name the folder above "
    f"{ARCHIVE} with --data.dir"
)


def load_tiny_imagenet(data_dir: Path | None = None) -> Dataset:
    """Return TinyImageNet from ``<data_dir>/tiny-imagenet-200``.

    Classes are numbered in the order of their WordNet names, rows in the order of class and file
    name; test rows in the order of ``val_annotations.txt``. Grey images become colour images.

    Raises:
        DataError: if a part of the archive is absent or an image is damaged.
    """
    folder = (default_data_dir() if data_dir is None else data_dir) / ARCHIVE
    if not folder.is_dir():
        raise DataError(f"TinyImageNet needs the folder {folder}, which is not there; {REMEDY}.")
    wnids = sorted(_lines(folder / "wnids.txt"))
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    train_paths = [_class_images(folder / "train" / wnid / "images") for wnid in wnids]
    sizes = [len(paths) for paths in train_paths]
    if min(sizes) != max(sizes):
        wnid = wnids[int(np.argmin(sizes))]
        raise DataError(
            f"{folder / 'train' / wnid} holds {min(sizes)} images where other classes hold "
            f"{max(sizes)}, so the archive is half-extracted; {REMEDY}."
        )
    test_paths, test_labels = _annotated(folder / "val", labels)
    return make_dataset(
        "tiny_imagenet",
        (
            _decode([path for paths in train_paths for path in paths], "tiny_imagenet train"),
            np.repeat(np.arange(len(wnids), dtype=np.int32), sizes[0]),
        ),
        (_decode(test_paths, "tiny_imagenet test"), test_labels),
        tuple(words.get(wnid, wnid).split(",")[0] for wnid in wnids),
        augment=True,
    )


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); {REMEDY}.") from error
    if not lines:
        raise DataError(f"{path} is empty; {REMEDY}.")
    return lines


def _class_images(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.JPEG"))
    if not paths:
        raise DataError(f"{folder} holds no JPEG image; {REMEDY}.")
    return paths


def _annotated(folder: Path, labels: dict[str, int]) -> tuple[list[Path], np.ndarray]:
    """Return paths and labels [t] of the validation images, in the order of their list."""
    path = folder / "val_annotations.txt"
    rows = [line.split("\t") for line in _lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2 or row[1] not in labels:
            raise DataError(f"line {number} of {path} names no class of wnids.txt; {REMEDY}.")
    return (
        [folder / "images" / row[0] for row in rows],
        np.array([labels[row[1]] for row in rows], np.int32),
    )


def _decode(paths: Sequence[Path], title: str) -> np.ndarray:
    """Return the images [n, 64, 64, 3], decoded in threads."""
    decoder()  # says what is missing
    images = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)

    def decode(row: int) -> None:
        pixels = read_image(paths[row], channels=3)
        if pixels.shape != images.shape[1:]:
            raise ValueError(f"its shape is {pixels.shape}, not {images.shape[1:]}")
        images[row] = pixels

    for row, why in in_threads(decode, len(paths), title):
        raise DataError(f"{paths[row]} cannot be read ({why}); {REMEDY}.")
    return images
