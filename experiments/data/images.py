"""The user's own images: a folder for each class, read once and kept in a cache."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.data.cache import read_cache, write_cache
from experiments.data.dataset import (
    DataError,
    Dataset,
    OwnOptions,
    cache_dir,
    classes_of,
    numbered,
    own_dataset,
)
from experiments.data.pixels import decoder, in_threads, read_image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
HIDDEN = (".", "__MACOSX")  # beginnings of names that are nobody's images
PARTS = ("train", "test", "validation")
LAYOUT = f"put {', '.join(ENDINGS)} files into train/CLASS and test/CLASS, or into CLASS alone"


def load_images(folder: Path, options: OwnOptions) -> Dataset:
    """Return the images of ``folder/train/CLASS`` and ``folder/test/CLASS``, or of ``folder/CLASS``.

    Classes are in order (numbers by value), images in the order of class and path. Where there is no
    ``test`` folder, one image in five of every class is a test image, drawn by a fixed seed; where
    validation images are asked for and there is no ``validation`` folder, one in ten of the remaining
    ones is. Grey images stay grey unless there are colour images, too. What was decoded is kept in the
    user's cache folder until a name, size or time of change, an option or the decoder is another.

    Raises:
      DataError: in one sentence, when the folder or an image cannot be used.
    """
    files = find_images(folder)
    class_names = classes_of(folder / "train", [name for _, name in files["train"]], LAYOUT)
    labels = {
        part: numbered(folder / part, [name for _, name in own], class_names)
        for part, own in files.items()
    }
    pixels = _pixels(folder, [path for part in files.values() for path, _ in part], options)
    parts, start = {}, 0
    for part, own in labels.items():
        parts[part] = (pixels[start : start + len(own)], own)
        start += len(own)
    return own_dataset(str(folder), parts, class_names, options.validation)


def find_images(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Return path and class of the images of every part that the folder holds, in order.

    Raises:
      DataError: when the folder is laid out otherwise.
    """
    try:
        names = [found.name for found in _visible(folder) if found.is_dir()]
        if "train" not in names:
            parts = {"train": folder}
            misplaced = [name for name in names if name in PARTS]
            if misplaced:
                raise DataError(f"{folder} holds {misplaced[0]} but no train folder; {LAYOUT}.")
        else:
            parts = {part: folder / part for part in PARTS if part in names}
            others = [name for name in names if name not in PARTS]
            if others:
                raise DataError(
                    f"{folder} holds the folder {others[0]} beside train but only {', '.join(PARTS)} "
                    "are read; rename it or move it away."
                )
        found, left_out = {}, []  # names stay texts: Path would take seconds
        for part, place in parts.items():
            found[part], others = _by_class(place)
            left_out += others
    except OSError as error:
        raise DataError(
            f"--data.dir {folder} cannot be read ({error.strerror}) but must be a folder of images; "
            f"{LAYOUT}."
        ) from error
    if left_out:
        _say(
            f"{len(left_out)} files that do not end in {', '.join(ENDINGS)} were left out; the first "
            f"is {left_out[0]}."
        )
    return found


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, by name, without hidden files."""
    return sorted(found for found in folder.iterdir() if not found.name.startswith(HIDDEN))


def _by_class(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return path and class of all images, and the files that are none."""
    found, left_out = [], []
    for place in _visible(folder):
        if not place.is_dir():
            if place.suffix.lower() in ENDINGS:
                raise DataError(
                    f"{place} lies outside the folders of the classes, whose names are the labels; "
                    f"{LAYOUT}."
                )
            left_out.append(str(place))
            continue
        own: list[str] = []
        for at, folders, files in os.walk(place):
            folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
            for name in sorted(name for name in files if not name.startswith(HIDDEN)):
                (own if name.lower().endswith(ENDINGS) else left_out).append(os.path.join(at, name))
        if not own:
            raise DataError(
                f"{place} holds no {', '.join(ENDINGS)} file but each folder is a class; add images, "
                "or move it away."
            )
        found += [(path, place.name) for path in own]
    if not found:
        raise DataError(f"{folder} holds no folder of a class; {LAYOUT}.")
    return found, left_out


def _pixels(folder: Path, paths: list[str], options: OwnOptions) -> np.ndarray:
    """Return the images [n, h, w, c], uint8, from the cache or their files."""
    own = [options.image_size, options.image_fit]
    described = [(path.removeprefix(str(folder)), *_stamp(path)) for path in paths]
    made_of = _digest([decoder(), own, described])
    name = _digest([str(folder.resolve()), own])[:16]
    cache = cache_dir() / "images" / f"{folder.resolve().name}-{name}.npz"
    found, said = read_cache(cache, made_of)
    if found is not None:
        return found["pixels"]
    if said is not None:
        _say(said)
    pixels = decode(paths, options, str(folder))
    unwritten = write_cache(cache, made_of, {"pixels": pixels})
    if unwritten is not None:
        _say(unwritten)
    return pixels


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend or remove it.") from error
    return found.st_size, found.st_mtime_ns


def _digest(values: list[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode("utf-8", "surrogatepass")).hexdigest()


def decode(paths: list[str], options: OwnOptions, title: str) -> np.ndarray:
    """Return the images [n, h, w, 1] if all are grey, else [n, h, w, 3], uint8.

    Raises:
      DataError: when files cannot be read, differ in size, or do not fit the memory.
    """
    shape = options.image_size or _first_size(paths)
    _check_memory(len(paths), shape)
    pixels = np.empty((len(paths), *shape, 3), np.uint8)
    sizes = np.zeros((len(paths), 2), int)
    colour = np.zeros(len(paths), bool)

    def take(place: int) -> None:
        image = read_image(paths[place], options.image_size, options.image_fit)
        sizes[place], colour[place] = image.shape[:2], image.shape[2] == 3
        if image.shape[:2] == shape:
            pixels[place] = image

    failed = in_threads(take, len(paths), title)
    if failed:
        _refuse_unreadable(paths, failed)
    others = np.flatnonzero((sizes != shape).any(axis=1))
    if others.size:
        height, width = sizes[others[0]]
        raise DataError(
            f"{paths[others[0]]} has {height} x {width} pixels (height x width) but {paths[0]} has "
            f"{shape[0]} x {shape[1]}, and {len(others)} of {len(paths)} images differ from that; pass "
            f"--data.image-size {min(shape)}, say, to bring all to one size."
        )
    return pixels if colour.any() else np.ascontiguousarray(pixels[..., :1])


def _first_size(paths: list[str]) -> tuple[int, int]:
    """Return height and width of the first image that can be read."""
    failed = []
    for place, path in enumerate(paths):
        try:
            height, width, _ = read_image(path).shape
            return height, width
        except Exception as error:  # decoders share none
            failed.append((place, str(error)))
    _refuse_unreadable(paths, failed)
    raise AssertionError


def _refuse_unreadable(paths: list[str], failed: list[tuple[int, str]]) -> None:
    place, why = failed[0]
    more = f", and {len(failed) - 1} more of {len(paths)} files cannot" if len(failed) > 1 else ""
    why = " ".join(why.replace(repr(paths[place]), "").split())
    raise DataError(f"{paths[place]} cannot be read as an image ({why}){more}; mend or remove them.")


def _check_memory(count: int, shape: tuple[int, int]) -> None:
    """Refuse more pixels than the machine holds, before hours of reading."""
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # this system does not say
        return
    needed = count * shape[0] * shape[1] * 3
    if needed > there:
        raise DataError(
            f"{count} images of {shape[0]} x {shape[1]} pixels take {needed / 2**30:.1f} GiB but this "
            f"machine has {there / 2**30:.1f}; pass a smaller --data.image-size."
        )


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
