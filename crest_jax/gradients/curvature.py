"""Hessian-vector products, Hutchinson's diagonal, and smoothed moments."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from crest_jax import _checks
from crest_jax.gradients.sketches import random_signs
from crest_jax.types import Array, Params, PyTree

Loss = Callable[[Params], Array]  # params -> []
Smoothing = Literal["none", "signed", "paper"]
# Decays of the means of gradient and curvature; those of "paper" are AdaHessian's.
DECAYS: dict[Smoothing, tuple[float, float]] = {
    "none": (0.0, 0.0),
    "signed": (0.0, 0.9),
    "paper": (0.9, 0.999),
}


def hessian_vector_product(loss_fn: Loss, params: Params, vector: Params) -> Params:
    """Return ``H v`` for the Hessian ``H`` of ``loss_fn`` at ``params``.

    Forward over reverse (Pearlmutter, Neural Computation 1994): the tangent of the gradient.

    Example:
      >>> hessian_vector_product(lambda p: jnp.sum(p**3), jnp.array([1.0, 2.0]), jnp.ones(2)).tolist()
      [6.0, 12.0]
    """
    return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]


def hutchinson_diagonal(key: Array, loss_fn: Loss, params: Params, *, num_probes: int = 1) -> Params:
    """Estimate the Hessian's diagonal by ``E[z * Hz]`` with Rademacher ``z``.

    Unbiased; exact after one probe when the Hessian is diagonal (Hutchinson 1989; Bekas, Kokiopoulou
    and Saad, Applied Numerical Mathematics 2007). The variance of entry ``i`` is
    ``sum_{j != i} H_ij^2 / num_probes``.

    Args:
      key: PRNG key.
      loss_fn: scalar loss of the parameters.
      params: where to take the Hessian.
      num_probes: static number of random vectors.

    Returns:
      The estimate, shaped like ``params``.

    Raises:
      ValueError: when ``num_probes`` is below 1 or the key is none.

    Example:
      >>> loss = lambda p: jnp.sum(p**3)
      >>> key = jax.random.key(0)
      >>> hutchinson_diagonal(key, loss, jnp.array([1.0, 2.0]), num_probes=2).tolist()
      [6.0, 12.0]
    """
    return gradient_and_diagonal(draw_probes(key, params, num_probes), loss_fn, params)[1]


def draw_probes(key: Array, params: Params, num_probes: int) -> Params:
    """Return Rademacher vectors shaped like ``params``, stacked: leaves [num_probes, ...].

    Drawn as one flat array and cut: XLA compiles that many times faster than a draw for each leaf.

    Raises:
      ValueError: when ``num_probes`` is below 1 or the key is none.

    Example:
      >>> sorted(set(draw_probes(jax.random.key(0), jnp.zeros(9), 2).ravel().tolist()))
      [-1.0, 1.0]
    """
    _checks.positive_int("num_probes", num_probes)
    key = _checks.prng_key("key", key)
    leaves, structure = jax.tree.flatten(params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    flat = random_signs(key, (num_probes, sum(sizes)), jnp.int8)
    parts = jnp.split(flat, list(itertools.accumulate(sizes))[:-1], axis=1)
    cut = [
        part.reshape(num_probes, *leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, cut)


def gradient_and_diagonal(probes: Params, loss_fn: Loss, params: Params) -> tuple[Params, Params]:
    """Return the gradient and Hutchinson's estimate of the Hessian's diagonal, sharing their work.

    Probes of a part of the parameters (see ``covered``) give the diagonal of that part, and the
    gradient of all.

    Takes the probes as an argument, and unrolls them: on a CPU, XLA compiles a Hessian-vector product
    several times slower when its vector is drawn in the same program, and runs the gradient of a
    convolution an order of magnitude slower inside a loop.

    Args:
      probes: Rademacher vectors, leaves [num_probes, ...]; see ``draw_probes``.
      loss_fn: scalar loss of the parameters.
      params: where to take both.

    Example:
      >>> probes = draw_probes(jax.random.key(0), jnp.ones(2), 1)
      >>> [x.tolist() for x in gradient_and_diagonal(probes, lambda p: jnp.sum(p**3), jnp.ones(2))]
      [[3.0, 3.0], [6.0, 6.0]]
    """
    part = restrict(params, probes)
    whole = len(jax.tree.leaves(part)) == len(jax.tree.leaves(params))

    def loss_of_part(part: Params) -> Array:
        return loss_fn(with_part(params, part))

    gradient, product = jax.linearize(jax.grad(loss_of_part), part)
    if not whole:
        gradient = jax.grad(loss_fn)(params)
    num_probes = jax.tree.leaves(probes)[0].shape[0]
    total = optax.tree.zeros_like(part)
    for index in range(num_probes):
        vector = jax.tree.map(lambda x, index=index: x[index], probes)
        total = jax.tree.map(lambda t, v, h: t + v * h, total, vector, product(vector))
    return gradient, jax.tree.map(lambda t: t / num_probes, total)


def covered(params: Params, pattern: str | None) -> Params:
    """Return the parameters whose path a regular expression finds, and None in place of the others.

    Raises:
      ValueError: when it finds none, or is no regular expression.

    Example:
      >>> covered({"body": {"w": 1.0}, "head": {"w": 2.0}}, "head")
      {'body': {'w': None}, 'head': {'w': 2.0}}
    """
    if pattern is None:
        return params
    paths = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    _checks.require(
        any(re.search(pattern, path) for path in paths),
        f"curvature_of is {_checks.brief(pattern)} but must be found in the path of a parameter, such "
        f"as {paths[-1] if paths else 'none'}; use a part of such a path.",
    )
    return jax.tree.map_with_path(
        lambda path, leaf: leaf if re.search(pattern, _name(path)) else None, params
    )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def restrict(tree: PyTree, part: PyTree) -> PyTree:
    """Return a tree like ``tree`` with None where ``part`` has None.

    Example:
      >>> restrict({"a": 1, "b": 2}, {"a": None, "b": 0})
      {'a': None, 'b': 2}
    """
    return jax.tree.map(lambda p, x: None if p is None else x, part, tree, is_leaf=_is_none)


def with_part(tree: PyTree, part: PyTree) -> PyTree:
    """Return ``part`` with what ``tree`` has where ``part`` has None.

    Example:
      >>> with_part({"a": 1, "b": 2}, {"a": None, "b": 0})
      {'a': 1, 'b': 0}
    """
    return jax.tree.map(lambda p, x: x if p is None else p, part, tree, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


class Moments(NamedTuple):
    """Exponential moving averages over regions.

    Attributes:
      gradient: of the gradients ("paper").
      curvature: of the diagonals ("signed") or of their squares ("paper").
      square: [], float32, of the squared norms of the diagonals.
      updates: [], int32.
    """

    gradient: Params | None
    curvature: Params | None
    square: Array
    updates: Array


def init_moments(params: Params, part: Params | None = None, *, smoothing: Smoothing) -> Moments:
    """Return zero moments for parameters of this shape, those that the smoothing reads.

    Args:
      params: parameters, for the gradient's mean.
      part: those that the curvature is taken of; None: all.
      smoothing: see ``smooth``.

    Example:
      >>> init_moments(jnp.ones(2), smoothing="paper").gradient.tolist()
      [0.0, 0.0]
      >>> init_moments(jnp.ones(2), smoothing="signed").gradient is None
      True
    """
    part = params if part is None else part
    zeros = optax.tree.zeros_like
    return Moments(
        zeros(params) if smoothing == "paper" else None,
        None if smoothing == "none" else zeros(part),
        jnp.zeros((), jnp.float32),
        jnp.zeros((), jnp.int32),
    )


def smooth(
    moments: Moments,
    gradient: Params,
    diagonal: Params,
    *,
    smoothing: Smoothing,
    beta1: float,
    beta2: float,
) -> tuple[Moments, Params, Params, Array]:
    """Fold a new gradient and diagonal into the moments; return the smoothed pair and the norm.

    * ``"none"``: the new gradient and diagonal as they are.
    * ``"signed"``: the new gradient, and the bias-corrected mean of the diagonals with decay
      ``beta2``; signs are kept.
    * ``"paper"``: bias-corrected mean of the gradients with decay ``beta1``, and square root of the
      bias-corrected mean of the squared diagonals with decay ``beta2`` (Yang, Kang and Mirzasoleiman,
      ICML 2023, Section 4; AdaHessian, Yao et al., AAAI 2021).

    The norm is the root of the mean of the squared norms, decay ``beta2``, of the diagonals as they
    come. One estimate by Hutchinson has the norm of ``H z``, on average that of the whole Hessian: its
    noise is as large in every region. The norm of a mean of diagonals falls with their number alone.

    Args:
      moments: state, of ``init_moments`` for this smoothing.
      gradient: at the new anchor.
      diagonal: at the new anchor.
      smoothing: see above; static.
      beta1: decay for gradients, in [0, 1).
      beta2: decay for curvature, in [0, 1).

    Returns:
      The new state, the gradient and the curvature to use, and the norm [] of the curvature.

    Example:
      >>> state = init_moments(jnp.zeros(1), smoothing="paper")
      >>> options = dict(smoothing="paper", beta1=0.9, beta2=0.999)
      >>> _, g, h, norm = smooth(state, jnp.array([1.0]), jnp.array([-2.0]), **options)
      >>> [round(float(x), 3) for x in (g[0], h[0], norm)]
      [1.0, 2.0, 2.0]
    """
    updates, beta2 = moments.updates + 1, 0.0 if smoothing == "none" else beta2
    now = optax.tree.norm(diagonal, squared=True).astype(jnp.float32)
    square = optax.tree.update_moment(now, moments.square, beta2, 1)
    norm = jnp.sqrt(_bias_corrected(square, beta2, updates))
    if smoothing == "none":
        return Moments(None, None, square, updates), gradient, diagonal, norm
    order = 2 if smoothing == "paper" else 1
    second = optax.tree.update_moment(diagonal, moments.curvature, beta2, order)
    curvature = _bias_corrected(second, beta2, updates)
    if smoothing == "signed":
        return Moments(None, second, square, updates), gradient, curvature, norm
    first = optax.tree.update_moment(gradient, moments.gradient, beta1, 1)
    mean = _bias_corrected(first, beta1, updates)
    moments = Moments(first, second, square, updates)
    return moments, mean, jax.tree.map(jnp.sqrt, curvature), norm


def _bias_corrected(moment: Params, decay: float, updates: Array) -> Params:
    """Divide a moving average by the weight of what went into it, ``1 - decay^updates``."""
    weight = 1 - jax.lax.pow(jnp.asarray(decay, jax.dtypes.canonicalize_dtype(jnp.float64)), updates)
    return jax.tree.map(lambda x: x / weight.astype(x.dtype), moment)
