"""Download CIFAR or SNLI and write it as ``array_record`` files, which need no TensorFlow to read.

    python -m experiments.prepare cifar10 [--data-dir DIR]

Writing does need TensorFlow: pip install 'crest_jax[prepare]'. Everything happens in a temporary
folder beside the target, which is read back whole and only then renamed.
"""

import argparse
import os
import shutil
import sys
import tempfile
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from experiments.data.dataset import DataError, default_data_dir, one_line
from experiments.data.prepared import NUM_CLASSES, find_version, load_prepared
from experiments.text.texts import load_snli

CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
HOSTS = {**dict.fromkeys(NUM_CLASSES, CIFAR), "snli": "https://nlp.stanford.edu/projects/snli/"}
TIMEOUT = 20  # seconds
REQUIRED = ("tensorflow", "tensorflow_datasets", "array_record")


def prepare(name: str, data_dir: Path) -> Path:
    """Write ``name`` into ``data_dir`` and return its version folder, at once if it is there.

    Raises:
        DataError: if a package or the network is missing, or the download fails; the folder is
            then as it was.
    """
    try:
        return find_version(name, data_dir)
    except DataError:
        pass
    missing = [package for package in REQUIRED if find_spec(package) is None]
    if missing:
        raise DataError(
            f"preparing {name} needs {' and '.join(missing)}, not installed here; "
            "pip install 'crest_jax[prepare]', or copy a prepared folder from another machine and "
            "name the folder above it with --data-dir."
        )
    _reach(name)
    data_dir.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=data_dir))
    try:
        _download(name, staging)
        _read_back(name, staging)
        made = find_version(name, staging)
        target = data_dir / name / made.name
        target.parent.mkdir(exist_ok=True)
        os.rename(made, target)
    finally:
        shutil.rmtree(staging)
    return target


def _read_back(name: str, folder: Path) -> None:
    if name == "snli":
        load_snli(folder)
    else:
        load_prepared(name, folder)


def _reach(name: str) -> None:
    """Raise if the host does not answer: TFDS would retry for minutes before it said so."""
    try:
        request = urllib.request.Request(HOSTS[name], method="HEAD")
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise DataError(
            f"{name} cannot be downloaded, because {HOSTS[name]} does not answer ({error}); connect to "
            "the network, or copy a prepared folder from another machine."
        ) from error


def _download(name: str, folder: Path) -> None:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # the network, the disk and TFDS share no exception
        raise DataError(
            f"{name} could not be prepared ({type(error).__name__}: {one_line(error)}); run the "
            "command again, no half-made folder is left."
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=tuple(HOSTS))
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    options = parser.parse_args(arguments)
    try:
        folder = prepare(options.name, options.data_dir)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.name} is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
