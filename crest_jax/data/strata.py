"""The rows of each class, side by side: what every draw by class goes through."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from crest_jax import _checks
from crest_jax.data.devices import place
from crest_jax.types import Array


def compact(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels [n] in the smallest unsigned type that holds them.

    Example:
      >>> compact(np.array([0, 255]), 256).dtype
      dtype('uint8')
    """
    return labels.astype(np.min_scalar_type(num_classes - 1))


class Strata(NamedTuple):
    """The rows of a data set, or of a part of it, by class: 5 bytes a row for up to 256 classes.

    Attributes:
      classes: [n], unsigned integers, of all rows of the data set.
      members: [k], int32: rows sorted by class.
      starts: [c], int32: where each class begins in `members`.
      sizes: [c], int32.
    """

    classes: Array
    members: Array
    starts: Array
    sizes: Array


def make_strata(
    labels: np.ndarray,
    num_classes: int,
    rows: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> Strata:
    """Sort rows by class, on the host, once.

    Args:
      labels: [n], integer classes of all rows, in ``[0, num_classes)``; see ``classes.classes_of``.
      num_classes: number of classes; an array of as many entries is made.
      rows: [k], the rows to draw from; None: all.
      mesh: see ``ArraySource``.

    Raises:
      ValueError: when the labels are no such classes.

    Example:
      >>> make_strata(np.array([1, 0, 1]), 2).members.tolist()
      [1, 0, 2]
    """
    classes = compact(_checks.labels_valid(labels, len(labels), num_classes), num_classes)
    own = classes if rows is None else classes[rows]
    order = np.argsort(own, kind="stable").astype(np.int32)
    members = order if rows is None else np.asarray(rows, np.int32)[order]
    sizes = np.bincount(own, minlength=num_classes).astype(np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    return place(Strata(*map(jnp.asarray, (classes, members, starts, sizes))), mesh)
