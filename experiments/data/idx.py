"""The IDX format of MNIST and its relatives: big-endian sizes, then bytes.

A file starts with two zero bytes, the type (8: unsigned byte) and the number of dimensions; then
come the sizes, four bytes each, and the payload in C order. Source:
http://yann.lecun.com/exdb/mnist, section "File formats".
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError

UNSIGNED_BYTE = 8


def encode_idx(array: np.ndarray) -> bytes:
    """Return a uint8 array as IDX bytes."""
    header = struct.pack(">HBB", 0, UNSIGNED_BYTE, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def decode_idx(raw: bytes, offset: int = 0) -> tuple[np.ndarray, int]:
    """Return the array that starts at ``offset`` and the offset behind it.

    Raises:
        ValueError: if the magic number is wrong or the payload is shorter than the header says.
    """
    if len(raw) < offset + 4:
        raise ValueError(f"it ends after {len(raw):,} bytes, inside the header")
    zero, kind, ndim = struct.unpack_from(">HBB", raw, offset)
    if zero != 0 or kind != UNSIGNED_BYTE or ndim == 0:
        magic = raw[offset : offset + 4].hex()
        raise ValueError(f"it starts with the magic number 0x{magic}, not 0x000008 and a rank")
    start = offset + 4 + 4 * ndim
    if len(raw) < start:
        raise ValueError(f"it ends after {len(raw):,} bytes, inside the header")
    shape = struct.unpack_from(f">{ndim}I", raw, offset + 4)
    size = math.prod(shape)
    if len(raw) < start + size:
        raise ValueError(
            f"its header promises {size:,} bytes of shape {shape}, but {len(raw) - start:,} follow"
        )
    array = np.frombuffer(raw, np.uint8, count=size, offset=start).reshape(shape)
    return array, start + size


def read_idx(path: Path, ndim: int, remedy: str) -> np.ndarray:
    """Return the array in a plain or gzipped (``.gz``) IDX file.

    Raises:
        DataError: if the file is damaged; ``remedy`` ends the sentence.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        array, end = decode_idx(raw)
        if end != len(raw):
            raise ValueError(f"{len(raw) - end:,} bytes follow the payload that its header promises")
        if array.ndim != ndim:
            raise ValueError(f"it holds an array of rank {array.ndim}, not {ndim}")
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an IDX file: {error}; {remedy}.") from error
    return array
