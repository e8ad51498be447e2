"""Random projections that keep inner products in expectation."""

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.types import Array, PyTree

LARGE = 2**16  # values of an array that is sketched by itself; smaller ones are laid end to end


def count_sketch(key: Array, tree: PyTree, dimension: int) -> Array:
    """Return the count sketch [dimension] of all values in a tree.

    The values are cut into blocks of ``dimension``. Each value gets a random sign; each block is rolled
    by a random offset; the blocks are summed. Two values of one block never meet, two of different
    blocks with probability ``1 / dimension``, so inner products are kept in expectation, with a
    standard deviation of at most ``sqrt(2 / dimension)`` of the product of lengths.

    Args:
      key: PRNG key; the same key gives the same sketch.
      tree: arrays of any shapes.
      dimension: entries of the sketch.

    Example:
      >>> tree = {"a": jnp.ones(3), "b": jnp.zeros((2, 2))}
      >>> count_sketch(jax.random.key(0), tree, 5).shape
      (5,)
    """
    key, total = _checks.prng_key("key", key), jnp.zeros(dimension, jnp.float32)
    flat = [leaf.reshape(-1).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    parts = [leaf for leaf in flat if leaf.size >= LARGE]
    if small := [leaf for leaf in flat if leaf.size < LARGE]:
        parts.append(jnp.concatenate(small))  # one loop for all: hundreds would compile for long
    for index, part in enumerate(parts):
        offset_key, sign_key = jax.random.split(jax.random.fold_in(key, index))
        count = -(-part.size // dimension)
        blocks = jnp.pad(part, (0, count * dimension - part.size)).reshape(count, dimension)
        offsets = jax.random.randint(offset_key, (count,), 0, dimension, jnp.int32)
        signs = random_signs(sign_key, (count, dimension), jnp.float32)
        total = total + jax.lax.platform_dependent(
            blocks, signs, offsets, cpu=_sum_rolled_in_turn, default=_sum_rolled
        )
    return total


def _sum_rolled(blocks: Array, signs: Array, offsets: Array) -> Array:
    """Sum signed blocks [k, d], each rolled by its offset: one gather and one sum, for accelerators."""
    places = (jnp.arange(blocks.shape[1], dtype=jnp.int32)[None, :] - offsets[:, None]) % blocks.shape[
        1
    ]
    return jnp.sum(jnp.take_along_axis(blocks * signs, places, axis=1), axis=0)


def _sum_rolled_in_turn(blocks: Array, signs: Array, offsets: Array) -> Array:
    """The same, block by block into a sum of twice the length: gathers are slow on a CPU."""
    dimension = blocks.shape[1]

    def add(total: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
        values, signs, offset = block
        so_far = jax.lax.dynamic_slice(total, (offset,), (dimension,))
        return jax.lax.dynamic_update_slice(total, so_far + values * signs, (offset,)), None

    total, _ = jax.lax.scan(add, jnp.zeros(2 * dimension, jnp.float32), (blocks, signs, offsets))
    return total[:dimension] + total[dimension:]


def random_signs(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """Return Rademacher numbers, 1 or -1: ``jax.random.rademacher``, the same ones in 64-bit mode too.

    Example:
      >>> sorted(set(random_signs(jax.random.key(0), (9,), jnp.int8).tolist()))
      [-1, 1]
    """
    return 2 * jax.random.bernoulli(key, jnp.float32(0.5), shape).astype(dtype) - 1


def sketched_products(key: Array, left: Array, right: Array, dimension: int) -> Array:
    """Return sketches [b, dimension] of the sums of outer products ``sum_t left[b, t] right[b, t]^T``.

    The tensor sketch of Pham and Pagh (KDD 2013): entry ``(i, j)`` is added, with sign ``s(i) s'(j)``,
    to place ``h(i) + h'(j)`` modulo the dimension, by products of Fourier transforms; the matrices are
    never stored. Inner products are kept in expectation, with a standard deviation of at most
    ``3 / sqrt(dimension)`` of the product of lengths for one position.

    Args:
      key: PRNG key; the same key gives the same sketch.
      left: [b, t, c].
      right: [b, t, d].
      dimension: entries of a sketch.

    Example:
      >>> sketched_products(jax.random.key(0), jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5)), 8).shape
      (2, 8)
    """
    sides = []
    for own, side in zip(jax.random.split(key), (left, right), strict=True):
        place_key, sign_key = jax.random.split(own)
        width = side.shape[2]
        places = jax.random.randint(place_key, (width,), 0, dimension, jnp.int32)
        sides.append((places, random_signs(sign_key, (width,), jnp.float32)))

    def spectrum(rows: Array, places: Array, signs: Array) -> Array:
        flat = jnp.zeros((dimension, len(rows)), jnp.float32).at[places].add((rows * signs[None, :]).T)
        return jnp.fft.rfft(flat, axis=0)

    def one(pair: tuple[Array, Array]) -> Array:
        both = [spectrum(rows, *side) for rows, side in zip(pair, sides, strict=True)]
        return jnp.fft.irfft(jnp.sum(both[0] * both[1], axis=1), dimension)

    return jax.lax.map(one, (left, right))
