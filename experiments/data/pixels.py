"""Image files as arrays of one size, read in threads. Pillow is imported where it is used."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.data.dataset import DataError, Fit, one_line

VERSION = 1  # of what is made of a file, part of what a cache depends on
GROUP = 64  # files that a thread takes at once
ORIENTATION = 0x0112  # EXIF
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # modes of 16-bit grey
GREY = ("1", "L", "LA", "La")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def decoder() -> str:
    """Return the name of what decodes images, with its version.

    Raises:
      DataError: when Pillow is not installed.
    """
    try:
        import PIL
    except ImportError as error:
        raise DataError(
            "images are decoded with pillow, which is not installed; pip install "
            "'crest_jax[experiments]'."
        ) from error
    return f"{VERSION} pillow {PIL.__version__}"


def read_image(
    path: str | Path,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    channels: int | None = None,
) -> np.ndarray:
    """Return one image, upright, without transparency, of 8 bits.

    Transparent pixels show white; 16-bit grey loses its lower 8 bits; of moving pictures the first is
    taken.

    Args:
      path: the file.
      size: height and width in pixels; None: as it is.
      fit: how it is brought there: "crop" scales the shorter side and cuts the middle out, "stretch"
        scales both sides, whatever becomes of the proportions.
      channels: 1 for grey, 3 for colour; None: as the file has it.

    Returns:
      [h, w, 1] or [h, w, 3], uint8.

    Raises:
      Exception: of any kind, when it is no image; the decoders share none.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if size is not None:  # a JPEG much larger is decoded at a half, a quarter or an eighth
            file.draft(None, (2 * max(size), 2 * max(size)))
        image = _flat(file)
        if file.getexif().get(ORIENTATION, 1) != 1:
            image = _upright(image, file.getexif()[ORIENTATION])
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != size[::-1]:
        bicubic = Image.Resampling.BICUBIC
        if fit == "crop":
            image = ImageOps.fit(image, size[::-1], bicubic)
        else:
            image = image.resize(size[::-1], bicubic)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _flat(image: Any) -> Any:
    """Return a Pillow image in mode "L" or "RGB"."""
    from PIL import Image

    if image.mode in DEEP:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "L" if image.mode in GREY else "RGB"
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert(mode)
    return image.convert(mode)


def _upright(image: Any, orientation: int) -> Any:
    """Return a Pillow image turned as the EXIF tag says."""
    from PIL import Image

    turn = Image.Transpose
    how = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }  # fmt: skip
    return image.transpose(how[orientation]) if orientation in how else image


def in_threads(take: Callable[[int], None], count: int, title: str) -> list[tuple[int, str]]:
    """Call ``take`` for 0 .. count - 1 on all cores; return the places that failed, and why."""
    starts = range(0, count, GROUP)

    def some(start: int) -> list[tuple[int, str]]:
        failed = []
        for place in range(start, min(start + GROUP, count)):
            try:
                take(place)
            except Exception as error:  # decoders share none
                failed.append((place, one_line(error)))
        return failed

    found: list[tuple[int, str]] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=count, desc=title, unit="image", disable=None) as bar,
    ):
        try:
            for start, failed in zip(starts, pool.map(some, starts), strict=True):
                found += failed
                bar.update(min(GROUP, count - start))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found
