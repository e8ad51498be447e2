"""Crops and mirror images, against the set of all images they may give."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.augment import pad_crop_flip


def allowed(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Return every crop of the padded image and its mirror, with (top, left, mirrored)."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            crops[crop.tobytes()] = (top, left, False)
            crops[np.flip(crop, axis=1).tobytes()] = (top, left, True)
    return crops


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("padding", [0, 2])
def test_every_output_is_a_crop_or_its_mirror_and_all_occur(dtype: type, padding: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (4, 5, 3)).astype(dtype)
    crops = allowed(image, padding)
    assert len(crops) == 2 * (2 * padding + 1) ** 2
    out = np.asarray(pad_crop_flip(jax.random.key(0), np.tile(image, (800, 1, 1, 1)), padding=padding))
    assert out.shape == (800, 4, 5, 3)
    assert out.dtype == dtype
    seen = [crops[one.tobytes()] for one in out]  # a KeyError is an image that may not occur
    assert set(seen) == set(crops.values())
    share = np.mean([mirrored for _, _, mirrored in seen])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 800)


def test_each_example_stays_itself() -> None:
    images = np.arange(1, 65, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 2), np.uint8)
    out = np.asarray(pad_crop_flip(jax.random.key(1), images, padding=2))
    for value, one in zip(range(1, 65), out, strict=True):
        assert set(np.unique(one)) <= {0, value}
        assert one[3, 3, 0] == value


def test_one_trace_serves_all_keys_and_eager_agrees() -> None:
    images = jnp.asarray(np.random.default_rng(0).integers(0, 255, (8, 5, 5, 1)), jnp.uint8)
    counted = jax.jit(chex.assert_max_traces(pad_crop_flip.__wrapped__, n=1))
    outs = [counted(jax.random.key(seed), images) for seed in range(2)]
    assert not np.array_equal(*outs)
    np.testing.assert_array_equal(outs[0], pad_crop_flip.__wrapped__(jax.random.key(0), images))
