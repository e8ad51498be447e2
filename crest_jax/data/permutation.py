"""Pseudo-random permutations that are computed where they are needed and never stored."""

import jax
import jax.numpy as jnp

from crest_jax.types import Array


def mix(x: Array) -> Array:
    """Scatter 32-bit numbers: the finaliser of MurmurHash3 (Appleby, public domain), a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


_ROUNDS = 4


def scramble(places: Array, sizes: Array, seeds: Array) -> Array:
    """Return where a pseudo-random permutation of ``range(sizes)`` takes ``places``, lane by lane.

    A Feistel network on pairs ``(x, y)`` with ``a b >= size``, walked until it comes back into the
    range (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
      places: [b], int32, in ``[0, sizes)``.
      sizes: [b], int32, at least 1.
      seeds: [b], uint32; equal seeds and sizes give the same permutation.

    Example:
      >>> sorted(scramble(jnp.arange(5), jnp.full(5, 5), jnp.full(5, 7, jnp.uint32)).tolist())
      [0, 1, 2, 3, 4]
    """
    size = sizes.astype(jnp.uint32)
    a = jnp.sqrt(sizes.astype(jnp.float32)).astype(jnp.uint32) + 1
    b = (size + a - 1) // a

    def once(x: Array) -> Array:
        left, right = x // b, x % b
        for turn in range(_ROUNDS):
            left = (left + mix(right + mix(seeds + jnp.uint32(2 * turn))) % a) % a
            right = (right + mix(left + mix(seeds + jnp.uint32(2 * turn + 1))) % b) % b
        return left * b + right

    def outside(x: Array) -> Array:
        return jnp.any(x >= size)

    def again(x: Array) -> Array:
        return jnp.where(x >= size, once(x), x)

    return jax.lax.while_loop(outside, again, once(places.astype(jnp.uint32))).astype(jnp.int32)
