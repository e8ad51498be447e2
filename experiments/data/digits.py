"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn bundles: for smoke tests."""

import numpy as np

from experiments.data.dataset import SEED, TEST_EVERY, DataError, Dataset, held_out, make_dataset


def load_digits() -> Dataset:
    """Return the digits, values 0 to 16, with a seeded stratified split.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; "
            "pip install 'crest_jax[experiments]'."
        ) from error
    bunch = datasets.load_digits()
    inputs = bunch.images.astype(np.uint8)[..., None]  # [1797, 8, 8, 1]
    test = held_out(bunch.target, TEST_EVERY, SEED)
    return make_dataset(
        "digits",
        (inputs[~test], bunch.target[~test]),
        (inputs[test], bunch.target[test]),
        tuple(str(digit) for digit in range(10)),
        white=16,
    )
