"""The piece-wise quadratic model of the loss, and how long to trust it."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from crest_jax.gradients.curvature import restrict
from crest_jax.types import Array, ModelState, Params


class Region(NamedTuple):
    """A quadratic model ``F(delta) = loss + g . delta + 1/2 delta . (h * delta)`` about an anchor.

    Yang, Kang and Mirzasoleiman, ICML 2023, Section 4.

    Attributes:
      anchor: the parameters at which the region began.
      model_state: the model state at the anchor.
      probe_indices: [k], int32, examples on which the loss is measured, then and now.
      probe_weights: [k], float32, examples that each of them stands for.
      loss: [], float32, weighted mean evaluation-mode loss of the probe examples at the anchor.
      gradient: g, as the parameters.
      curvature: h, the Hessian's diagonal, as the parameters; None where it is not taken, and in place
        of all where the Hessian is taken along ``delta`` at the check.
    """

    anchor: Params
    model_state: ModelState
    probe_indices: Array
    probe_weights: Array
    loss: Array
    gradient: Params
    curvature: Params | None


def empty_region(
    params: Params, model_state: ModelState, part: Params | None, probe_size: int
) -> Region:
    """Return a region of the right shapes before the first one, its anchor at these parameters.

    Args:
      params: parameters.
      model_state: model state.
      part: the parameters whose curvature the region holds, None elsewhere.
      probe_size: k.

    Example:
      >>> empty_region(jnp.ones(2), {}, jnp.ones(2), 3).gradient.tolist()
      [0.0, 0.0]
    """
    return Region(
        anchor=params,
        model_state=model_state,
        probe_indices=jnp.zeros(probe_size, jnp.int32),
        probe_weights=jnp.ones(probe_size, jnp.float32),
        loss=jnp.zeros((), jnp.float32),
        gradient=optax.tree.zeros_like(params),
        curvature=None if part is None else optax.tree.zeros_like(part),
    )


def predict(region: Region, params: Params, bend: Array | None = None) -> Array:
    """Return the loss [] that the quadratic model predicts at ``params``.

    The step is measured as ``params - anchor``, so it is right under any optimizer.

    Args:
      region: the model.
      params: parameters now.
      bend: [], ``delta . H delta``; None: by the region's diagonal.

    Example:
      >>> region = Region(
      ...     jnp.zeros(2), {}, jnp.arange(1), jnp.ones(1), jnp.array(3.0), jnp.ones(2), jnp.ones(2)
      ... )
      >>> float(predict(region, jnp.array([1.0, 0.0])))
      4.5
    """
    chex.assert_trees_all_equal_shapes(params, region.anchor)
    delta = jax.tree.map(jnp.subtract, params, region.anchor)
    linear = optax.tree.vdot(region.gradient, delta)
    if bend is None:
        delta = restrict(delta, region.curvature)
        bend = optax.tree.vdot(delta, jax.tree.map(jnp.multiply, region.curvature, delta))
    return region.loss + linear + 0.5 * bend


def relative_error(predicted: Array, loss: Array) -> Array:
    """Return ``rho = |F(delta) - loss| / |loss|`` [] for a prediction and the loss that was measured.

    Yang, Kang and Mirzasoleiman, ICML 2023, Section 4, where losses are above 0. Exactly 0 where both
    are equal, as at the anchor, and huge for a loss of 0 that was not predicted.

    Example:
      >>> float(relative_error(jnp.array(4.5), jnp.array(4.0)))
      0.125
    """
    error = jnp.abs(predicted - loss)
    smallest = float(jnp.finfo(jnp.float32).tiny)
    return jnp.where(error == 0, 0.0, error / jnp.where(loss == 0, smallest, jnp.abs(loss)))


def check_interval(reference: float, norm: float, *, multiplier: float, maximum: int) -> int:
    """Return the steps until the next check, ``ceil(multiplier * reference / norm)``.

    ``T1`` grows as the curvature's norm falls below its reference (Yang, Kang and Mirzasoleiman, ICML
    2023, Section 4), between 1 and ``maximum``.

    Args:
      reference: norm of the curvature at the reference region; NaN before there is one, which counts
        as equal to ``norm``.
      norm: norm of the curvature now; 0 gives the maximum.
      multiplier: ``h0``.
      maximum: the longest interval.

    Example:
      >>> check_interval(4.0, 2.0, multiplier=4.0, maximum=100)
      8
    """
    ratio = 1.0 if math.isnan(reference) else (reference / norm if norm > 0 else math.inf)
    return max(1, math.ceil(min(multiplier * ratio, maximum)))
