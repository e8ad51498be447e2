"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn bundles: for smoke tests."""

import numpy as np

from experiments.data.dataset import DataError, Dataset, make_dataset

SEED = 0
TEST_SHARE = 5  # one row in five of every class is a test row


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
    generator = np.random.default_rng(SEED)
    test = np.zeros(len(inputs), bool)
    for label in range(10):
        rows = generator.permutation(np.flatnonzero(bunch.target == label))
        test[rows[: len(rows) // TEST_SHARE]] = True
    return make_dataset(
        "digits",
        (inputs[~test], bunch.target[~test]),
        (inputs[test], bunch.target[test]),
        tuple(str(digit) for digit in range(10)),
    )
