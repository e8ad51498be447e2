"""Batch normalisation for weighted mini-batches, in Linen and in NNX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from crest_jax import _checks
from crest_jax.types import Array


class WeightedBatchNorm(nn.Module):
    """Batch normalisation whose statistics count each example by its weight.

    A weighted mini-batch stands for more examples than it holds. Plain BatchNorm ignores the weights,
    so its mean and variance are those of the wrong examples, in training and, through the running
    statistics, in evaluation. With weights of 1, or none, this is ``flax.linen.BatchNorm``, with the
    same parameters and statistics under the same names (Ioffe and Szegedy, ICML 2015, Algorithm 1,
    with ``sum(w x) / sum(w)`` for the means).

    ``momentum`` is the share of the old value in the running statistics, ``dtype`` that of the result
    (None: that of ``x`` and the parameters together); statistics are float32. The parameters are
    ``scale`` and ``bias`` [c], the collection ``batch_stats`` holds ``mean`` and ``var`` [c].

    >>> norm = WeightedBatchNorm()
    >>> x, weights = jnp.array([[0.0], [4.0]]), jnp.array([3.0, 1.0])
    >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
    >>> y, _ = norm.apply(
    ...     variables, x, use_running_average=False, weights=weights, mutable=["batch_stats"]
    ... )
    >>> bool(abs(3 * y[0, 0] + y[1, 0]) < 1e-5)
    True
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool, weights: Array | None = None) -> Array:
        """Normalise ``x`` [b, ..., c] over all axes but the last; ``weights`` [b] are at least 0."""
        _switch(use_running_average)
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if use_running_average:
            centre, spread = mean.value, var.value
        else:
            centre, spread = _weighted_moments(x.astype(jnp.float32), weights)
            if not self.is_initializing():
                old = self.momentum
                mean.value = old * mean.value + (1 - old) * centre
                var.value = old * var.value + (1 - old) * spread
        wide = (None,) * (x.ndim - 1)
        factor = jax.lax.rsqrt(spread + self.epsilon) * scale
        y = (x - centre[wide]) * factor[wide] + bias[wide]
        return y.astype(self.dtype or jnp.result_type(x, scale, bias))


class NNXWeightedBatchNorm(nnx.BatchNorm):
    """``flax.nnx.BatchNorm`` whose statistics count each example by its weight.

    It is made, switched (``model.train()``, ``model.eval()``) and stored like ``nnx.BatchNorm``, and
    without weights it is ``nnx.BatchNorm``. With weights it takes the means of `WeightedBatchNorm`,
    which says why. A model hands them on: ``__call__(self, x, weights=None)``.

    >>> norm = NNXWeightedBatchNorm(1, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.array([[0.0], [4.0]]), weights=jnp.array([3.0, 1.0]))
    >>> bool(abs(3 * y[0, 0] + y[1, 0]) < 1e-5)
    True
    """

    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        weights: Array | None = None,
        mask: Array | None = None,
    ) -> Array:
        """Normalise ``x`` [b, ..., c]; ``weights`` [b] count in training only.

        Weights are at least 0 and not all 0, which is checked outside ``jit`` only.

        Raises:
          ValueError: when weights come with a mask, an ``axis_name`` or another axis than the last, or
            are not one for each example, at least 0 and not all 0.
        """
        running = self.use_running_average if use_running_average is None else use_running_average
        _switch(running)
        if weights is None or running:
            return super().__call__(x, use_running_average, mask=mask)
        _checks.require(
            mask is None and self.axis_name is None and self.axis in (-1, x.ndim - 1),
            f"weights come with mask={_checks.brief(mask)}, axis_name={self.axis_name!r}, "
            f"axis={self.axis!r} but need mask=None, axis_name=None, axis=-1; use weights of 0 in "
            "place of a mask, and features last.",
        )
        dtype = jnp.result_type(x, self.mean[...]) if self.dtype is None else self.dtype
        x = jnp.asarray(x, jnp.float32)
        mean, spread = _weighted_moments(x, weights, fast=self.use_fast_variance)
        for running_value, now in ((self.mean, mean), (self.var, spread)):
            mixed = self.momentum * running_value[...] + (1 - self.momentum) * now
            running_value[...] = jax.lax.stop_gradient(mixed)
        wide = (None,) * (x.ndim - 1)
        factor = jax.lax.rsqrt(spread + self.epsilon)
        if self.scale is not None:
            factor = factor * self.scale[...]
        y = (x - mean[wide]) * factor[wide]
        if self.bias is not None:
            y = y + self.bias[...][wide]
        return y.astype(dtype)


def _switch(value: Any) -> None:
    """Check that the switch is one: weights by position would be taken for it."""
    _checks.require(
        isinstance(value, (bool, np.bool_)),
        f"use_running_average is {_checks.brief(value)} but must be True or False; pass weights by "
        "name: weights=batch.weights.",
    )


def _weighted_moments(x: Array, weights: Array | None, *, fast: bool = True) -> tuple[Array, Array]:
    """Mean and variance [c] of x [b, ..., c], float32, each example counted by its weight [b].

    ``fast``: in one pass, which loses digits where the mean is many times the deviation.
    """
    _checks.require(
        weights is None or weights.shape == x.shape[:1],
        f"weights have shape {getattr(weights, 'shape', ())} but must have shape {x.shape[:1]}, one "
        "per example; pass batch.weights.",
    )
    if weights is not None and _checks.is_concrete(weights):
        least, total = float(jnp.min(weights)), float(jnp.sum(weights))
        _checks.require(
            least >= 0 and total > 0,
            f"weights are {least:g} at least and sum to {total:g} but must be at least 0 and not all "
            "0; pass batch.weights.",
        )
    inner = tuple(range(1, x.ndim - 1))
    shares = None if weights is None else weights / jnp.sum(weights)

    def mean_of(values: Array) -> Array:
        each = jnp.mean(values, inner)
        return jnp.mean(each, 0) if shares is None else jnp.dot(shares, each, precision="highest")

    mean = mean_of(x)
    if not fast:
        return mean, mean_of(jnp.square(x - mean[(None,) * (x.ndim - 1)]))
    return mean, jnp.maximum(mean_of(jnp.square(x)) - jnp.square(mean), 0.0)
