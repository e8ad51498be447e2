"""Arrays kept on disk that know what they were made of."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.dataset import one_line

PART = ".part"  # in the names of files that are being written


def read_cache(path: Path, made_of: str) -> tuple[dict[str, np.ndarray] | None, str | None]:
    """Return the arrays of a cache that was made of the same, and a sentence where it was not.

    Args:
      path: the cache, ``.npz``; its checksums are verified.
      made_of: what the arrays depend on, as one word.

    Returns:
      The arrays by name, or None; a sentence where a cache is there but cannot be used.
    """
    if not path.is_file():
        return None, None
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            if str(file["made_of"]) == made_of:
                return {name: file[name] for name in file.files if name != "made_of"}, None
        return None, f"{path} was made of other data or settings; it is made again."
    except Exception as error:  # zip, pickle and NumPy errors of a damaged file
        return None, f"{path} cannot be read ({one_line(error)[:80]}); it is made again."


def write_cache(
    path: Path, made_of: str, arrays: Mapping[str, Any], *, compress: bool = False
) -> str | None:
    """Write a cache whole or not at all, and drop what killed programs left of it.

    Returns:
      A sentence where it cannot be written; all works without it, only slower.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_cache(Path(folder) / "a.npz", "ones", {"x": np.ones(2)})
    ...     read_cache(Path(folder) / "a.npz", "ones")[0]["x"].tolist()
    [1.0, 1.0]
    """
    part = path.with_name(f"{path.name}{PART}{os.getpid()}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{path.name}{PART}*"):
            if not _alive(left):
                left.unlink(missing_ok=True)
        with part.open("wb") as file:
            (np.savez_compressed if compress else np.savez)(file, made_of=made_of, **arrays)
        part.replace(path)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror}); the data are read anew each time."
    finally:
        if part.exists():
            part.unlink()
    return None


def _alive(part: Path) -> bool:
    """Return whether the program that writes a file may still be there."""
    number = part.name.rpartition(PART)[2].partition("-")[0]
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True
