"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), whole and in two subsets.

The subsets take the first rows of every class and keep the order of the original files, so that
anyone can rebuild them from the original files alone.
"""

import hashlib
import lzma
from pathlib import Path

import numpy as np

from experiments.data.dataset import DataError, Dataset, make_dataset, rows_per_class
from experiments.data.idx import decode_idx, read_idx

SHIPPED = Path(__file__).parents[1] / "assets" / "fashion_mnist_12k.idx.xz"
SHIPPED_SHA256 = "c2027a6f426b88a112e1e332d95f992df3acbda8d7bab8923b97585472fdde5b"
SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")
TRAIN_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TRAIN_PER_CLASS, TEST_PER_CLASS = 6_000, 1_000
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
REMEDY = (
    "apt-get install dataset-fashion-mnist, or name a folder (--data.dir in training) that holds the "
    "four IDX files of https://github.com/zalandoresearch/fashion-mnist"
)
Split = tuple[np.ndarray, np.ndarray]  # images [n, 28, 28], labels [n], both uint8


def load_fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Return all 60,000 train and 10,000 test rows, from ``data_dir`` or the Debian package."""
    train, test = read_originals(data_dir)
    return make_dataset("fashion_mnist", _channel(train), _channel(test), CLASS_NAMES)


def load_fashion_mnist_20k(data_dir: Path | None = None) -> Dataset:
    """Return 2,000 train rows of every class, the next 500 for validation, and all test rows."""
    train, test = read_originals(data_dir)
    return make_dataset(
        "fashion_mnist_20k",
        _channel(first_per_class(train, 0, 2_000)),
        _channel(test),
        CLASS_NAMES,
        validation=_channel(first_per_class(train, 2_000, 2_500)),
    )


def load_fashion_mnist_20k_imbalanced(data_dir: Path | None = None) -> Dataset:
    """Return 20,000 train rows drawn with repetition out of those of the 20k set.

    As collected data are: class ``c`` has a share in proportion to ``50^(-c / 9)``, so that the first
    has 50 times the rows of the last, and within a class a row comes as often as a Pareto variable of
    exponent 1 says: a few rows make up much of the data and many are absent. The draw is the same each
    time. Validation and test rows are those of the 20k set, balanced.
    """
    train, test = read_originals(data_dir)
    images, labels = first_per_class(train, 0, 2_000)
    rows = imbalanced_rows(labels, len(labels))
    return make_dataset(
        "fashion_mnist_20k_imbalanced",
        _channel((images[rows], labels[rows])),
        _channel(test),
        CLASS_NAMES,
        validation=_channel(first_per_class(train, 2_000, 2_500)),
    )


def imbalanced_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Draw ``count`` rows with heavy-tailed repetition and a 50:1 class imbalance, in random order.

    >>> rows = imbalanced_rows(np.arange(1000) % 10, 1000)
    >>> shares = np.bincount(rows % 10) / 1000
    >>> bool(30 < shares[0] / shares[9] < 80)
    True
    """
    rng = np.random.default_rng(0)
    classes = int(labels.max()) + 1
    share = 50.0 ** (-np.arange(classes) / max(1, classes - 1))
    sizes = np.floor(count * share / share.sum()).astype(int)
    sizes[0] += count - sizes.sum()
    drawn = []
    for label, size in enumerate(sizes):
        own = np.flatnonzero(labels == label)
        often = rng.pareto(1.0, len(own)) + 1
        drawn.append(rng.choice(own, size, p=often / often.sum()))
    return rng.permutation(np.concatenate(drawn))


def load_fashion_mnist_12k(path: Path = SHIPPED) -> Dataset:
    """Return the shipped subset: the first 1,000 train and 200 test rows of every class.

    Raises:
        DataError: if the file is absent or is not, byte for byte, the shipped one.
    """
    remedy = (
        "restore it with git checkout, or make it with "
        "python -m experiments.data.make_fashion_mnist_12k"
    )
    if not path.is_file():
        raise DataError(f"{path} is not there; {remedy}.")
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SHIPPED_SHA256:
        raise DataError(
            f"{path} is damaged: its {len(raw):,} bytes have SHA-256 {digest[:12]}..., not "
            f"{SHIPPED_SHA256[:12]}...; {remedy}."
        )
    train, test = unpack(lzma.decompress(raw))
    return make_dataset("fashion_mnist_12k", _channel(train), _channel(test), CLASS_NAMES)


def unpack(payload: bytes) -> tuple[Split, Split]:
    """Return (train, test) from four IDX files end to end: images, labels, images, labels."""
    train_images, end = decode_idx(payload)
    train_labels, end = decode_idx(payload, end)
    test_images, end = decode_idx(payload, end)
    test_labels, _ = decode_idx(payload, end)
    return (train_images, train_labels), (test_images, test_labels)


def first_per_class(split: Split, start: int, stop: int) -> Split:
    """Return the ``start``-th to before the ``stop``-th row of every class, in file order."""
    images, labels = split
    rows = rows_per_class(labels, start, stop)
    return images[rows], labels[rows]


def read_originals(data_dir: Path | None = None) -> tuple[Split, Split]:
    """Return (train, test) from the original files, gzipped or plain.

    Raises:
        DataError: if a file is absent or damaged, or does not hold what Fashion-MNIST holds.
    """
    folder = SYSTEM_DIR if data_dir is None else data_dir
    return (
        _read_split(folder, TRAIN_FILES, TRAIN_PER_CLASS),
        _read_split(folder, TEST_FILES, TEST_PER_CLASS),
    )


def _read_split(folder: Path, names: tuple[str, str], per_class: int) -> Split:
    images_path, labels_path = (_find(folder, name) for name in names)
    images = read_idx(images_path, 3, REMEDY)
    labels = read_idx(labels_path, 1, REMEDY)
    expected = (per_class * len(CLASS_NAMES), 28, 28)
    if images.shape != expected:
        raise DataError(
            f"{images_path} holds images of shape {images.shape}, where Fashion-MNIST has "
            f"{expected}; {REMEDY}."
        )
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    if not np.array_equal(counts, np.full(len(CLASS_NAMES), per_class)):
        raise DataError(
            f"{labels_path} holds {counts.tolist()} rows per class, where Fashion-MNIST has "
            f"{per_class:,} of each of {len(CLASS_NAMES)}; {REMEDY}."
        )
    return images, labels


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"Fashion-MNIST needs {name}.gz (or {name}) in {folder}; {REMEDY}.")


def _channel(split: Split) -> Split:
    images, labels = split
    return images[..., None], labels
