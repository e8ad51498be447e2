"""Per-example losses and the weighted mean that a mini-batch coreset is trained on."""

import jax
import jax.numpy as jnp

from crest_jax.types import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return softmax cross-entropy losses [b] of logits [b, c] for integer labels [b].

    Example:
      >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).tolist()
      [0.6931471824645996]
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - picked


def weighted_mean(losses: Array, weights: Array) -> Array:
    """Return ``sum(weights * losses) / sum(weights)`` [] for losses [m] and weights [m].

    Example:
      >>> float(weighted_mean(jnp.array([1.0, 4.0]), jnp.array([2.0, 1.0])))
      2.0
    """
    return jnp.sum(weights * losses) / jnp.sum(weights)
