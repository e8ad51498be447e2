"""Pseudo-random permutations that are computed where they are needed and never stored."""

import jax.numpy as jnp

from crest_jax.types import Array


def mix(x: Array) -> Array:
    """Scatter 32-bit numbers: the finaliser of MurmurHash3 (Appleby, public domain), a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_ROUNDS = 24


def scramble(places: Array, sizes: Array, seeds: Array) -> Array:
    """Return where a pseudo-random permutation of ``range(sizes)`` takes ``places``, lane by lane.

    Swap-or-not (Hoang, Morris and Rogaway, "An enciphering scheme based on a card shuffle", CRYPTO
    2012): every round pairs each place with another and swaps the two or not. It works on a range of
    any size, without a loop whose length depends on the data, so a draw is one kernel on a GPU.

    Args:
      places: [b], int32, in ``[0, sizes)``.
      sizes: [b], int32, at least 1.
      seeds: [b], uint32; equal seeds and sizes give the same permutation.

    Example:
      >>> sorted(scramble(jnp.arange(5), jnp.full(5, 5), jnp.full(5, 7, jnp.uint32)).tolist())
      [0, 1, 2, 3, 4]
    """
    size, x = sizes.astype(jnp.uint32), places.astype(jnp.uint32)
    for turn in range(_ROUNDS):
        pivot = mix(seeds + jnp.uint32(2 * turn)) % size
        partner = jnp.where(x <= pivot, pivot - x, pivot + (size - x))
        coin = mix(jnp.maximum(x, partner) ^ mix(seeds + jnp.uint32(2 * turn + 1)))
        x = jnp.where(coin >> 31 == 1, partner, x)
    return x.astype(jnp.int32)
