"""The user's own images in the IDX files of MNIST and its relatives."""

import re
from pathlib import Path

import numpy as np

from experiments.data.dataset import (
    DataError,
    Dataset,
    OwnOptions,
    Part,
    classes_of,
    numbered,
    own_dataset,
)
from experiments.data.idx import read_idx

NAME = re.compile(r"(?:.*[-_])?(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte", re.IGNORECASE)
REMEDY = (
    "put train-images-idx3-ubyte and train-labels-idx1-ubyte there and, for the test rows, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, gzipped (.gz) or not"
)


def load_idx(folder: Path, options: OwnOptions) -> Dataset:
    """Return the grey images of IDX files, found by their usual names, one set in a folder.

    Without test files, one image in five of every class is a test image, drawn by a fixed seed.

    Raises:
      DataError: in one sentence, when files are absent, damaged or do not fit each other.
    """
    files = find_idx(folder)
    parts = {part: _read(*paths) for part, paths in files.items()}
    inputs, labels = parts["train"]
    class_names = classes_of(files["train"][1], list(map(str, labels.tolist())), REMEDY)
    found = {}
    for part, (images, own) in parts.items():
        if images.shape[1:] != inputs.shape[1:]:
            raise DataError(
                f"{files[part][0]} holds images of {images.shape[1]} x {images.shape[2]} pixels but "
                f"those for training have {inputs.shape[1]} x {inputs.shape[2]}; {REMEDY}."
            )
        names = list(map(str, own.tolist()))
        found[part] = (images, numbered(files[part][1], names, class_names))
    return own_dataset(str(folder), found, class_names, options.validation)


def find_idx(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the files of images and labels of "train" and, where there are some, "test".

    Raises:
      DataError: when they are not all there, or there are several sets.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"--data.dir {folder} cannot be read ({error.strerror}) but must be a folder of IDX files; "
            f"{REMEDY}."
        ) from error
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        match = NAME.fullmatch(path.name.removesuffix(".gz"))
        if match is None:
            continue
        part, what = match[1].lower().replace("t10k", "test"), match[2].lower()
        other = found.setdefault((part, what), path)
        if other.name.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise DataError(
                f"{folder} holds {other.name} and {path.name} but must hold one set of IDX files; move "
                "the others away."
            )
    wanted = ["train", *(["test"] if any(part == "test" for part, _ in found) else [])]
    for part in wanted:
        for what in ("images", "labels"):
            if (part, what) not in found:
                raise DataError(f"{folder} holds no IDX file of the {part} {what}; {REMEDY}.")
    return {part: (found[part, "images"], found[part, "labels"]) for part in wanted}


def _read(images_path: Path, labels_path: Path) -> Part:
    """Return images [n, h, w, 1] and labels [n] of two files."""
    remedy = "fetch or write it again"
    images, labels = read_idx(images_path, 3, remedy), read_idx(labels_path, 1, remedy)
    if len(images) != len(labels) or not images.size:
        raise DataError(
            f"{images_path} holds {len(images)} images of {images.shape[1]} x {images.shape[2]} pixels "
            f"and {labels_path.name} {len(labels)} labels but there must be as many, and some; "
            f"{REMEDY}."
        )
    return np.ascontiguousarray(images[..., None]), labels
