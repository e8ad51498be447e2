"""Pseudo-random permutations that are computed where they are needed and never stored."""

import jax
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


def unscramble(places: Array, groups: Array, sizes: Array, seeds: Array) -> Array:
    """Return which places ``scramble`` takes to these; seeds and sizes are those of groups.

    Args:
      places: [b], int32, in ``[0, sizes[groups])``.
      groups: [b], int32.
      sizes: [g], int32.
      seeds: [g], uint32.

    Example:
      >>> sizes, seeds, lanes = jnp.array([5]), jnp.array([7], jnp.uint32), jnp.zeros(5, int)
      >>> found = scramble(jnp.arange(5), sizes[lanes], seeds[lanes])
      >>> unscramble(found, lanes, sizes, seeds).tolist()
      [0, 1, 2, 3, 4]
    """
    size, own = jnp.maximum(sizes, 1).astype(jnp.uint32), sizes[groups].astype(jnp.uint32)
    turns = jnp.arange(_ROUNDS, dtype=jnp.uint32)[:, None]
    pivots = mix(seeds[None, :] + 2 * turns) % size[None, :]
    keys = mix(seeds[None, :] + (2 * turns + 1))

    def undo(x: Array, tables: tuple[Array, Array]) -> tuple[Array, None]:  # each round undoes itself
        pivot, key = tables[0][groups], tables[1][groups]
        partner = jnp.where(x <= pivot, pivot - x, pivot + (own - x))
        coin = mix(jnp.maximum(x, partner) ^ key)
        return jnp.where(coin >> 31 == 1, partner, x), None

    # A loop: rounds written out would work the tables out anew for every place.
    x, _ = jax.lax.scan(undo, places.astype(jnp.uint32), (pivots, keys), reverse=True)
    return x.astype(jnp.int32)
