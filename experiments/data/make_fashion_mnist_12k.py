"""Make the shipped subset of Fashion-MNIST from the original files, to the same bytes.

    python -m experiments.data.make_fashion_mnist_12k --data-dir DIR --out FILE

The file is one xz stream of four IDX files end to end (train images, train labels, test images,
test labels): the first 1,000 train and the first 200 test rows of every class, in file order. The
encoder's settings are all spelled out, because presets may change between versions of liblzma.
"""

import argparse
import hashlib
import lzma
import os
import sys
from pathlib import Path

from experiments.data.dataset import DataError
from experiments.data.fashion_mnist import (
    SHIPPED,
    SHIPPED_SHA256,
    SYSTEM_DIR,
    first_per_class,
    read_originals,
)
from experiments.data.idx import encode_idx

TRAIN_ROWS, TEST_ROWS = 1_000, 200  # per class
FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 24,
        "lc": 3,
        "lp": 0,
        "pb": 2,
        "mode": lzma.MODE_NORMAL,
        "nice_len": 273,
        "mf": lzma.MF_BT4,
        "depth": 512,
    }
]


def payload(data_dir: Path) -> bytes:
    """Return the four IDX files, end to end, before compression."""
    train, test = read_originals(data_dir)
    splits = first_per_class(train, 0, TRAIN_ROWS), first_per_class(test, 0, TEST_ROWS)
    return b"".join(encode_idx(array) for split in splits for array in split)


def compress(raw: bytes) -> bytes:
    """Return ``raw`` as one xz stream, a function of its bytes alone."""
    return lzma.compress(raw, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=FILTERS)


def make(data_dir: Path, out: Path) -> None:
    """Write the subset to ``out``.

    Raises:
        DataError: if the originals are absent or damaged, or the result is not the pinned file;
            ``out`` is then left alone.
    """
    packed = compress(payload(data_dir))
    digest = hashlib.sha256(packed).hexdigest()
    if digest != SHIPPED_SHA256:
        raise DataError(
            f"the result has SHA-256 {digest}, not {SHIPPED_SHA256}, so the files in {data_dir} "
            "are not the original ones, or this version of liblzma encodes otherwise; nothing "
            "was written."
        )
    half_made = out.with_name(out.name + ".part")
    half_made.write_bytes(packed)
    os.replace(half_made, out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=SYSTEM_DIR, help="the four IDX files")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args(arguments)
    try:
        make(options.data_dir, options.out)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out} ({options.out.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
