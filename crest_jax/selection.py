"""Coresets of a pool of examples, from their embeddings."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.embeddings import squared_distances
from crest_jax.facility_location import coverage_counts, greedy, largest_remainder, similarity
from crest_jax.types import Array, Coreset, PyTree


def select_coreset(
    embeddings: PyTree, size: int, *, labels: Any = None, num_classes: int | None = None
) -> Coreset:
    """Choose ``size`` weighted medoids of a pool by greedy facility location.

    Maximises ``f(S) = sum_i max_{j in S} (max_distance - |g_i - g_j|)`` over the embeddings ``g``;
    the weight of a pick is the number of examples nearest to it (Yang, Kang and Mirzasoleiman, ICML
    2023, Section 4; Mirzasoleiman, Bilmes and Leskovec, ICML 2020). With labels, each class is
    covered by its own picks, in proportion to the class sizes by the largest remainder (a class too
    small for a pick of its own goes to the nearest pick of any), when ``size`` is at least twice the
    number of classes; below that the pool is covered as a whole.

    Works on concrete arrays, which are checked, and inside ``jit`` and ``vmap`` (pass ``num_classes``
    with labels there), where they are not. Memory is ``O(n^2)``, time ``O(n^2 size)``.

    Args:
      embeddings: [n, d], or ``Factored`` last-layer gradients.
      size: number of picks ``m``, at most ``n``.
      labels: [n], integer classes, or None.
      num_classes: number of classes; None takes the highest label plus one.

    Returns:
      A ``Coreset`` of exactly ``size`` different indices [m], class by class and in greedy order
      within each class, with weights [m] that sum to ``n``.

    Raises:
      ValueError: on empty, NaN or infinite embeddings, labels of the wrong length or out of range, or
        a size outside ``[1, n]``.

    Example:
      >>> points = jnp.array([[0.0], [1.0], [10.0]])
      >>> coreset = select_coreset(points, 2)
      >>> coreset.indices.tolist(), coreset.weights.tolist()
      ([1, 2], [2.0, 1.0])
    """
    embeddings = jax.tree.map(jnp.asarray, embeddings)
    count = _num_rows(embeddings)
    _checks.positive_int("size", size)
    if _checks.is_concrete(embeddings):
        _checks.embeddings_finite(embeddings)
    _checks.require(
        size <= count,
        f"size is {size} but the pool holds {count} examples and no example is chosen twice; ask for "
        f"at most {count}.",
    )
    _checks.require(
        size * count < 2**31,
        f"size times examples is {size * count} but must be below 2^31, for which the n x n "
        "similarities would not fit memory anyway; select from parts of the pool.",
    )
    if labels is None:
        labels, num_classes = jnp.zeros(count, jnp.int32), 1
    elif _checks.is_concrete(labels):
        labels = _checks.labels_valid(labels, count, num_classes)
        num_classes = num_classes if num_classes is not None else int(np.max(labels)) + 1
    elif num_classes is None:
        raise ValueError(
            "num_classes is None but labels are traced, so their range is unknown; pass num_classes "
            "when calling select_coreset inside jit or vmap."
        )
    return medoids(embeddings, jnp.asarray(labels, jnp.int32), size=size, num_classes=num_classes)


def _num_rows(embeddings: PyTree) -> int:
    leaves = jax.tree.leaves(embeddings)
    shapes = [leaf.shape for leaf in leaves]
    _checks.require(
        len(shapes) > 0 and all(len(shape) == 2 and shape[1] > 0 for shape in shapes),
        f"embeddings have shapes {shapes} but must be one array [n, d], d >= 1, or a Factored pair of "
        "them; flatten each example's embedding to a vector.",
    )
    _checks.require(
        len({shape[0] for shape in shapes}) == 1,
        f"embeddings have shapes {shapes} but their first dimensions must agree; pass one row per "
        "example in every part.",
    )
    return shapes[0][0]


@partial(jax.jit, static_argnames=("size", "num_classes"))
def medoids(embeddings: PyTree, labels: Array, *, size: int, num_classes: int) -> Coreset:
    """Choose medoids without any check: the compiled kernel of ``select_coreset``.

    Args:
      embeddings: [n, d], or ``Factored``.
      labels: [n], int32, in ``[0, num_classes)``.
      size: static, at most ``n``.
      num_classes: static.

    Returns:
      See ``select_coreset``.

    Example:
      >>> medoids(jnp.eye(3), jnp.zeros(3, int), size=3, num_classes=1).weights.tolist()
      [1.0, 1.0, 1.0]
    """
    if size < 2 * num_classes:
        labels, num_classes = jnp.zeros_like(labels), 1
    similarities = similarity(squared_distances(embeddings))
    quotas = largest_remainder(jnp.bincount(labels, length=num_classes), size)
    indices, gains = greedy(similarities, labels, quotas, size)
    weights = coverage_counts(similarities, labels, indices)
    return Coreset(indices, weights, gains, jnp.sum(gains))
