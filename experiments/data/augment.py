"""Random crops and mirror images, on the device and for all examples at once."""

from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array


@partial(jax.jit, static_argnames="padding")
def pad_crop_flip(key: Array, images: Array, *, padding: int = 4) -> Array:
    """Return each image shifted at random within a border of zeros, and mirrored with chance 1/2.

    Each image is padded by ``padding`` zeros on every side, cut back to its size at an offset drawn
    uniformly from ``0 .. 2 * padding`` in either direction, and flipped from left to right or not.

    Args:
        key: random key.
        images: [b, h, w, c], of any dtype, which is kept. Zero is black in uint8; where zero should
            stand for the mean instead, pass standardised images.
        padding: pixels of border; 0 leaves only the flip.

    >>> images = jnp.full((2, 8, 8, 1), 255, jnp.uint8)
    >>> out = pad_crop_flip(jax.random.key(0), images, padding=2)
    >>> out.shape, out.dtype
    ((2, 8, 8, 1), dtype('uint8'))
    """
    count, height, width, _ = images.shape
    row_key, column_key, flip_key = jax.random.split(key, 3)
    top = jax.random.randint(row_key, (count,), 0, 2 * padding + 1)
    left = jax.random.randint(column_key, (count,), 0, 2 * padding + 1)
    flip = jax.random.bernoulli(flip_key, 0.5, (count,))

    rows = top[:, None] + jnp.arange(height)[None, :]
    columns = left[:, None] + jnp.arange(width)[None, :]
    columns = jnp.where(flip[:, None], columns[:, ::-1], columns)
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    examples = jnp.arange(count)[:, None, None]
    return jnp.pad(images, border)[examples, rows[:, :, None], columns[:, None, :]]
