"""Data sets by name, as NumPy arrays in memory; nothing here touches the network."""

from collections.abc import Callable
from pathlib import Path

from experiments.data.dataset import DataError, Dataset, OwnOptions, default_data_dir
from experiments.data.digits import load_digits
from experiments.data.fashion_mnist import (
    load_fashion_mnist,
    load_fashion_mnist_12k,
    load_fashion_mnist_20k,
    load_fashion_mnist_20k_imbalanced,
)
from experiments.data.images import load_images
from experiments.data.mnist_like import load_idx
from experiments.data.prepared import load_prepared
from experiments.data.table import load_table
from experiments.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "DATASETS",
    "OWN_DATASETS",
    "WITH_FOLDER",
    "DataError",
    "Dataset",
    "OwnOptions",
    "default_data_dir",
    "load",
]

_LOADERS: dict[str, Callable[[Path | None], Dataset]] = {
    "fashion_mnist_12k": lambda _: load_fashion_mnist_12k(),
    "fashion_mnist_20k": load_fashion_mnist_20k,
    "fashion_mnist_20k_imbalanced": load_fashion_mnist_20k_imbalanced,
    "fashion_mnist": load_fashion_mnist,
    "digits": lambda _: load_digits(),
    "cifar10": lambda data_dir: load_prepared("cifar10", data_dir),
    "cifar100": lambda data_dir: load_prepared("cifar100", data_dir),
    "tiny_imagenet": load_tiny_imagenet,
}
# The user's own; they lie where ``data_dir`` says.
_OWN_LOADERS: dict[str, Callable[[Path, OwnOptions], Dataset]] = {
    "images": load_images,
    "idx": load_idx,
    "table": load_table,
}
OWN_DATASETS: tuple[str, ...] = tuple(_OWN_LOADERS)
DATASETS: tuple[str, ...] = (*_LOADERS, *OWN_DATASETS)
# Those that ``data_dir`` is read for; the others are bundled or come with a package.
WITH_FOLDER = tuple({*DATASETS, "snli"} - {"fashion_mnist_12k", "digits"})


def load(name: str, data_dir: Path | None = None, options: OwnOptions | None = None) -> Dataset:
    """Return the data set ``name``, one of ``DATASETS``.

    ``fashion_mnist_12k`` and ``digits`` are bundled and need no ``data_dir``. Without one, the
    other Fashion-MNIST sets come from the Debian package, the rest from ``default_data_dir()``. The
    user's own, ``OWN_DATASETS``, are read as ``options`` say.

    Raises:
        DataError: if the data is absent or damaged: one sentence with the ways out.
        ValueError: if there is no such data set, or no ``data_dir`` where one is needed.

    >>> load("fashion_mnist_12k").train_inputs.shape
    (10000, 28, 28, 1)
    """
    if name in _OWN_LOADERS:
        if data_dir is None:
            raise ValueError(f"data_dir is None but {name} lie where it says; name a folder or file.")
        return _OWN_LOADERS[name](data_dir, options or OwnOptions())
    if name not in _LOADERS:
        raise ValueError(f"no data set is called {name!r}; choose one of {', '.join(DATASETS)}.")
    return _LOADERS[name](data_dir)
