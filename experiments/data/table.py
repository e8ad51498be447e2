"""The user's own tables: rows of numbers with a class each, from CSV files or an npz file."""

import csv
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.dataset import (
    DataError,
    Dataset,
    OwnOptions,
    Part,
    classes_of,
    feature_moments,
    numbered,
    one_line,
    own_dataset,
)

PARTS = ("train", "test", "validation")
MISSING = ("", "nan", "na", "n/a", "null", "none", "?", "-")
SHOWN = 8  # names that a sentence lists
BLURRED = 0.01  # of a standard deviation: coarser steps of float32 would lose what a feature says
REMEDY = "name the column of the classes with --data.label"


class Rows(NamedTuple):
    """What one file holds."""

    feature_names: tuple[str, ...] | None  # [d]; None: they have none
    inputs: np.ndarray  # [n, d], float32
    labels: list[str]  # [n]

    def names(self) -> tuple[str, ...]:
        """Return the names of the features, or their numbers."""
        return self.feature_names or tuple(str(place + 1) for place in range(self.inputs.shape[1]))


def load_table(path: Path, options: OwnOptions) -> Dataset:
    """Return the rows of a CSV file, of a folder with train.csv and others, or of an npz file.

    A CSV file has a header; every column but the label and those that are ignored is a feature and
    holds numbers. A folder holds train.csv and, if there are such rows, test.csv and validation.csv. An
    npz file holds ``inputs`` [n, d] and ``labels`` [n] (or ``features`` or ``X``, and ``y``) and
    perhaps the same with ``test`` or ``validation`` in the name, ``feature_names`` [d] and
    ``class_names``.
    Test rows are split off as for images where there are none.

    Raises:
      DataError: in one sentence, with file, line and column, when a row cannot be used.
    """
    if path.suffix.lower() == ".npz":
        found, class_names = read_npz(path)
        where: dict[str, object] = {part: f"{path} ({part})" for part in found}
    else:
        files = _files(path)
        where = dict(files)
        first = read_csv(files["train"], options)
        found = {
            part: first if part == "train" else read_csv(file, options, first.feature_names)
            for part, file in files.items()
        }
        class_names = None
    train = found["train"]
    class_names = class_names or classes_of(where["train"], train.labels, REMEDY)
    parts: dict[str, Part] = {
        part: (rows.inputs, numbered(where[part], rows.labels, class_names))
        for part, rows in found.items()
    }
    names = train.feature_names
    return own_dataset(str(path), parts, class_names, options.validation, names)


def _files(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        if path.suffix.lower() != ".csv":
            raise DataError(
                f"--data.dir {path} must be a .csv file, an .npz file, or a folder with train.csv for "
                "--dataset table; name one."
            )
        return {"train": path}
    files = {part: path / f"{part}.csv" for part in PARTS if (path / f"{part}.csv").is_file()}
    if "train" not in files:
        raise DataError(f"{path} holds no train.csv; put it there, or name the file itself.")
    return files


def read_csv(
    path: Path, options: OwnOptions | None, feature_names: Sequence[str] | None = None
) -> Rows:
    """Return the rows of a CSV file with a header, separated by commas, in UTF-8.

    Args:
      path: the file.
      options: which columns are the label and no features; None: there need be no labels.
      feature_names: the columns to read; None: all others.

    Raises:
      DataError: when a column, a row or a cell cannot be used; the sentence names it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)  # quotes must be closed
            header = _header(path, next(lines, []))
            label = None if options is None else _place(path, header, options.label, REMEDY)
            names = _features(path, header, options, feature_names)
            places = [header.index(name) for name in names]
            values, labels = array("d"), []
            for row in lines:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path} has {len(row)} values in line {lines.line_num} but {len(header)} "
                        "columns; mend the line."
                    )
                cells = [row[place] for place in places]
                try:
                    values.extend(map(float, cells))
                except ValueError:
                    _refuse_cell(path, lines.line_num, names, cells)
                if "_" in "".join(cells):  # float() reads 20_1 as 201
                    _refuse_cell(path, lines.line_num, names, cells)
                if label is not None:
                    labels.append(row[label].strip())
                    if not labels[-1]:
                        raise DataError(
                            f"{path} has no label in line {lines.line_num}, column "
                            f"{header[label]!r}; fill it in or remove the line."
                        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read ({one_line(error)[:120]}) but must be a CSV file in UTF-8; correct "
            "it."
        ) from error
    if not values:
        raise DataError(f"{path} holds a header but no row; add rows.")
    whole = np.frombuffer(values).reshape(-1, len(names))
    inputs = _as_float32(path, whole, names)
    if options is not None and feature_names is None:
        _check_steps(path, whole, names)
    return Rows(tuple(names), inputs, labels)


def _header(path: Path, header: list[str]) -> list[str]:
    """Return the names of the columns, or say what is wrong with them."""
    names = [name.strip() for name in header]
    if not any(names):
        raise DataError(f"{path} is empty but must begin with a header; write the columns' names.")
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise DataError(
            f"{path} has the header {names[0]!r} but must be separated by commas; convert it."
        )
    if all(_is_number(name) for name in names):
        raise DataError(
            f"{path} begins with numbers ({_some(names)}) but must begin with a header; write the "
            "columns' names."
        )
    for name in names:
        if not name or names.count(name) > 1:
            raise DataError(
                f"{path} has {names.count(name)} columns named {name!r} but each must have a name of "
                "its own; rename them."
            )
    return names


def _is_number(text: str) -> bool:
    if "_" in text:
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _place(path: Path, header: list[str], name: str, remedy: str) -> int:
    if name not in header:
        raise DataError(f"{path} has no column {name!r} but {_some(header)}; {remedy}.")
    return header.index(name)


def _features(
    path: Path, header: list[str], options: OwnOptions | None, wanted: Sequence[str] | None
) -> list[str]:
    """Return the columns that are features."""
    if wanted is not None:
        for name in wanted:
            _place(path, header, name, "give it the columns of the training data")
        return list(wanted)
    others = [] if options is None else [options.label, *options.ignore]
    for name in others[1:]:
        _place(path, header, name, "correct --data.ignore")
    names = [name for name in header if name not in others]
    if not names:
        raise DataError(f"{path} has no column but the label; add features.")
    return names


def _refuse_cell(path: Path, line: int, names: list[str], cells: list[str]) -> None:
    """Say which cell of a row is no number."""
    for name, text in zip(names, map(str.strip, cells), strict=True):
        if text.lower() in MISSING:
            _refuse_missing(path, f"line {line}", name)
        if not _is_number(text):
            raise DataError(
                f"{path} has {text[:40]!r} in line {line}, column {name!r}, but features must "
                "be numbers; encode them, as one column of 0 and 1 for each value, say, or leave the "
                "column out with --data.ignore."
            )


def _refuse_missing(where: object, row: str, column: str) -> None:
    raise DataError(
        f"{where} has no value in {row}, column {column!r}, but none may be missing; fill it in, "
        "remove the row, or leave the column out with --data.ignore."
    )


def _as_float32(where: object, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return finite values [n, d] as float32."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    bad = np.argwhere(~np.isfinite(found))
    if bad.size:
        row, column = bad[0]
        if math.isnan(values[row, column]):
            _refuse_missing(where, f"row {row + 1}", names[column])
        raise DataError(
            f"{where} has {values[row, column]:g} in row {row + 1}, column {names[column]!r}, but "
            "values must be finite in float32; correct it."
        )
    return found


def _check_steps(where: object, values: np.ndarray, names: Sequence[str]) -> None:
    """Refuse training features whose differences float32 does not hold, as of seconds since 1970."""
    largest = np.abs(values).max(axis=0).astype(np.float32)
    spread = np.array(feature_moments(values)[1])
    blurred = (np.ptp(values, axis=0) > 0) & (np.spacing(largest) > BLURRED * spread)
    for column in np.flatnonzero(blurred).tolist():
        raise DataError(
            f"{where} has values up to {largest[column]:g} in column {names[column]!r} but they differ "
            f"by {spread[column]:.2g} only (standard deviation), too little for float32; subtract "
            "their minimum."
        )


def read_npz(path: Path) -> tuple[dict[str, Rows], tuple[str, ...] | None]:
    """Return the rows of every part of an npz file, and the names of the classes where it has them.

    Raises:
      DataError: when an array is absent, unknown or of the wrong kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip, pickle and NumPy errors of a damaged file
        raise DataError(
            f"{path} cannot be read ({one_line(error)[:120]}) but must be a file that numpy.savez "
            "wrote, of numbers and text; write it again."
        ) from error
    features, classes = (_names(path, arrays, key) for key in ("feature_names", "class_names"))
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in arrays.items():
        part, what = _meaning(key)
        if what is None or what in found.setdefault(part, {}):
            raise DataError(
                f"{path} holds the array {key!r} but must hold inputs and labels once, and perhaps "
                "test_inputs, test_labels, validation_inputs, validation_labels, feature_names and "
                "class_names; rename or remove it."
            )
        found[part][what] = value
    for part in ("train", *found):
        for what in ("inputs", "labels"):
            if what not in found.get(part, {}):
                key = what if part == "train" else f"{part}_{what}"
                raise DataError(f"{path} holds no array {key!r} but {_some([*arrays])}; add it.")
    width = found["train"]["inputs"].shape[1:]
    made = {
        part: _rows(f"{path} ({part})", own["inputs"], own["labels"], width, features, classes)
        for part, own in found.items()
    }
    _check_steps(f"{path} (train)", found["train"]["inputs"].astype(float), made["train"].names())
    return made, classes


def _names(path: Path, arrays: dict[str, np.ndarray], key: str) -> tuple[str, ...] | None:
    """Take an array of names out of those of an npz file, where it is there."""
    if key not in arrays:
        return None
    values = arrays.pop(key)
    names = tuple(map(str, np.atleast_1d(values).tolist()))
    if values.ndim != 1 or len(set(names)) < len(names):
        raise DataError(
            f"{path} holds {key} of shape {values.shape} but they must be different words in one row; "
            "correct them."
        )
    return names


def _meaning(key: str) -> tuple[str, str | None]:
    """Return the part and the kind of an array by its name; the kind is None where it has neither."""
    words = key.lower().split("_")
    parts = [word for word in words if word in PARTS]
    rest = [word for word in words if word not in PARTS]
    kinds = {"inputs": "inputs", "features": "inputs", "x": "inputs", "labels": "labels", "y": "labels"}
    what = kinds.get(rest[0]) if len(rest) == 1 and len(parts) < 2 else None
    return (parts or ["train"])[0], what


def _rows(
    where: str,
    inputs: np.ndarray,
    labels: np.ndarray,
    width: tuple[int, ...],
    features: tuple[str, ...] | None,
    classes: tuple[str, ...] | None,
) -> Rows:
    """Return checked rows of an npz file."""
    if inputs.ndim != 2 or inputs.dtype.kind not in "biuf" or not inputs.size:
        raise DataError(
            f"{where} holds inputs of shape {inputs.shape} and type {inputs.dtype} but they must be "
            "numbers of shape [rows, features]; reshape or encode them."
        )
    if inputs.shape[1:] != width or (features is not None and len(features) != width[0]):
        count = width[0] if features is None else len(features)
        raise DataError(
            f"{where} holds {inputs.shape[1]} features but {count} are named or trained on; make them "
            "as many."
        )
    if labels.shape != inputs.shape[:1] or labels.dtype.kind not in "biuU":
        raise DataError(
            f"{where} holds labels of shape {labels.shape} and type {labels.dtype} but they must be "
            f"{len(inputs)} whole numbers or texts, one a row; correct them."
        )
    values = labels.tolist()
    if classes is not None:
        if labels.dtype.kind == "U" or labels.min() < 0 or labels.max() >= len(classes):
            raise DataError(
                f"{where} holds class_names, so labels must be numbers in [0, {len(classes)}) that "
                "index them; correct one of the two."
            )
        values = [classes[value] for value in values]
    made = Rows(features, inputs, list(map(str, values)))
    return made._replace(inputs=_as_float32(where, inputs, made.names()))
