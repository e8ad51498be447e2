"""Data sets by name, as NumPy arrays in memory; nothing here touches the network."""

from collections.abc import Callable
from pathlib import Path

from experiments.data.dataset import DataError, Dataset, default_data_dir
from experiments.data.digits import load_digits
from experiments.data.fashion_mnist import (
    load_fashion_mnist,
    load_fashion_mnist_12k,
    load_fashion_mnist_20k,
    load_fashion_mnist_20k_imbalanced,
)
from experiments.data.prepared import load_prepared
from experiments.data.tiny_imagenet import load_tiny_imagenet

__all__ = ["DATASETS", "WITH_FOLDER", "DataError", "Dataset", "default_data_dir", "load"]

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
DATASETS: tuple[str, ...] = tuple(_LOADERS)
# Those that ``data_dir`` is read for; the others are bundled or come with a package.
WITH_FOLDER = (*DATASETS[1:4], *DATASETS[5:], "snli")


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Return the data set ``name``, one of ``DATASETS``.

    ``fashion_mnist_12k`` and ``digits`` are bundled and need no ``data_dir``. Without one, the
    other Fashion-MNIST sets come from the Debian package, the rest from ``default_data_dir()``.

    Raises:
        DataError: if the data is absent or damaged: one sentence with the ways out.
        ValueError: if there is no such data set.

    >>> load("fashion_mnist_12k").train_inputs.shape
    (10000, 28, 28, 1)
    """
    if name not in _LOADERS:
        raise ValueError(f"no data set is called {name!r}; choose one of {', '.join(DATASETS)}.")
    return _LOADERS[name](data_dir)
