"""Examples as people have them: arrays, and pytrees of arrays, checked once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.data.classes import classes_of
from crest_jax.types import Array, Examples, PyTree

FROM_LABELS = "labels"  # what ``classes`` is by default


def map_parts(function: Callable[[Any, str], Any], value: Any, name: str) -> PyTree:
    """Apply a function to the arrays of a dictionary or a tuple, however nested, or to one array.

    A tuple counts as several arrays where each of its entries has a shape or holds such; all else,
    lists also, is one array.

    Args:
      function: (array, its name) -> result.
      value: the arrays.
      name: what a sentence calls them.

    Raises:
      ValueError: on an empty dictionary, or one whose keys are no strings.

    Example:
      >>> map_parts(lambda x, name: (name, len(x)), {"ids": [1, 2], "mask": [1, 1]}, "inputs")
      {'ids': ("inputs['ids']", 2), 'mask': ("inputs['mask']", 2)}
    """
    if isinstance(value, Mapping):
        _checks.require(
            len(value) > 0 and all(isinstance(key, str) for key in value),
            f"{name} are {_checks.brief(dict(value))} but a dictionary of arrays needs at least one, "
            "each under a name; pass {'name': array}.",
        )
        return {key: map_parts(function, part, f"{name}[{key!r}]") for key, part in value.items()}
    if _is_tuple_of_arrays(value):
        parts = [map_parts(function, part, f"{name}[{i}]") for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return function(value, name)


def _is_tuple_of_arrays(value: Any) -> bool:
    def holds(part: Any) -> bool:
        return hasattr(part, "shape") or isinstance(part, Mapping) or _is_tuple_of_arrays(part)

    return isinstance(value, tuple) and len(value) > 0 and all(holds(part) for part in value)


def as_numbers(value: Any, name: str = "inputs") -> np.ndarray | Array:
    """Return an array of numbers that JAX holds as they are, up to the rounding of its floats.

    Raises:
      ValueError: on sparse matrices, masked entries, text, objects, lists whose entries differ in
        shape, and on numbers beyond the 32 bits that JAX gives them.

    Example:
      >>> as_numbers([[1, 2], [3, 4]]).shape
      (2, 2)
    """
    if isinstance(value, jax.Array):
        return value
    found = _checks.host_array(value, name, "give every example the same shape")
    kind = found.dtype
    _checks.require(
        kind.kind in "biufc" or kind == jnp.bfloat16,
        f"{name} have dtype {kind} but must be numbers; encode them as numbers of one dtype first.",
    )
    if kind == np.longdouble or kind == np.clongdouble:
        found = found.astype(np.complex128 if kind.kind == "c" else np.float64)
    _check_width(found, name)
    return found


def _check_width(values: np.ndarray, name: str) -> None:
    """Require finite numbers to stay what they are in the type that JAX gives them."""
    kept = jax.dtypes.canonicalize_dtype(values.dtype)
    if kept == values.dtype or values.dtype.kind == "c" or not values.size:
        return
    limits = np.iinfo(kept) if values.dtype.kind in "iu" else np.finfo(kept)
    low, high = values.min(), values.max()
    fits = low >= limits.min and high <= limits.max
    if not fits and values.dtype.kind == "f":  # NaN and infinity stay what they are
        fits = not (np.isfinite(values) & (np.abs(values) > limits.max)).any()
    _checks.require(
        bool(fits),
        f"{name} span {low:g} to {high:g}, beyond {kept}, in which JAX holds {values.dtype}; scale or "
        'number them anew, or set jax.config.update("jax_enable_x64", True).',
    )


def number_of(inputs: PyTree) -> int:
    """Return the number of examples n of arrays [n, ...].

    Raises:
      ValueError: when there are none, or not equally many in all arrays.

    Example:
      >>> number_of({"ids": np.zeros((3, 5)), "mask": np.zeros((3, 5))})
      3
    """
    shapes = [tuple(np.shape(leaf)) for leaf in jax.tree.leaves(inputs)]
    shown = shapes[0] if len(shapes) == 1 else _checks.brief(shapes)
    _checks.require(
        all(len(shape) > 0 and shape[0] > 0 for shape in shapes),
        f"inputs have shape {shown} but must hold at least one example; pass data of shape [n, ...] "
        "with n >= 1.",
    )
    counts = sorted({shape[0] for shape in shapes})
    _checks.require(
        len(counts) == 1,
        f"inputs hold {counts[0]} and {counts[-1]} examples in different arrays but must hold equally "
        "many in each; pass one row of every array for each example.",
    )
    return counts[0]


def count_of(examples: Examples) -> int:
    """Return the number b of examples.

    Example:
      >>> count_of(Examples(np.zeros((2, 3)), None))
      2
    """
    return int(jax.tree.leaves(examples)[0].shape[0])


def labels_for(labels: Any, count: int) -> PyTree:
    """Return labels, one for each of ``count`` examples, as arrays of numbers; class numbers as int32.

    Raises:
      ValueError: on text, and on another number of labels.

    Example:
      >>> labels_for([2, 0], 2).dtype, labels_for(np.zeros((2, 3)), 2).shape
      (dtype('int32'), (2, 3))
    """

    def one(value: Any, name: str) -> np.ndarray | Array:
        if not isinstance(value, jax.Array):
            value = _checks.host_array(value, name, "give every example a label of the same shape")
            _checks.require(
                value.dtype.kind not in "USO",
                f"{name} have dtype {value.dtype} but must be numbers; number classes with "
                "np.unique(labels, return_inverse=True)[1].",
            )
        found = as_numbers(value, name)
        _checks.require(
            found.ndim > 0 and found.shape[0] == count,
            f"{name} have shape {tuple(found.shape)} but must have shape ({count}, ...), one for each "
            "example; pass a label for every example.",
        )
        return found

    if labels is None:
        return None
    found = map_parts(one, labels, "labels")
    if getattr(found, "ndim", 0) == 1 and found.dtype.kind in "iu":
        _checks.require(
            bool(np.max(found) < 2**31),
            f"labels reach {np.max(found)} but class numbers must be below 2^31; number the classes "
            "with np.unique(labels, return_inverse=True)[1].",
        )
        return found.astype(np.int32)
    return found


def classes_for(classes: Any, labels: PyTree, count: int) -> np.ndarray | None:
    """Return the classes [n] that draws are stratified by, or None.

    Args:
      classes: "labels" for the labels where these are whole numbers [n], and none otherwise; [n] whole
        numbers or strings; None.
      labels: as of ``labels_for``.
      count: n.

    Raises:
      ValueError: on another number of classes, or what names no class.

    Example:
      >>> classes_for("labels", np.array([1, 0]), 2).tolist(), classes_for("labels", np.zeros(2), 2)
      ([1, 0], None)
    """
    if isinstance(classes, str):
        _checks.require(
            classes == FROM_LABELS,
            f"classes are {classes!r} but must be one class for each example, None, or 'labels'; pass "
            "an array [n].",
        )
        whole = getattr(labels, "ndim", 0) == 1 and labels.dtype.kind in "iu"
        return np.asarray(labels) if whole else None
    if classes is None:
        return None
    shape = _shape_of(classes)
    _checks.require(
        shape == (count,),
        f"classes have shape {shape} but must have shape ({count},), one per example; pass one whole "
        "number or string for each, or None for draws that are not stratified.",
    )
    found = classes_of(classes, name="classes")
    return found.names[found.codes]


def _shape_of(classes: Any) -> tuple[int, ...] | str:
    try:
        return np.shape(classes)
    except ValueError:
        return "of different lengths"


def rows_valid(rows: Any, count: int) -> np.ndarray:
    """Return rows of ``count`` examples as int32, refusing what is none.

    Example:
      >>> rows_valid([2, 0], 3).tolist()
      [2, 0]
    """
    found = np.asarray(rows)
    _checks.require(
        found.dtype.kind in "iu" or not found.size,
        f"rows have dtype {found.dtype} but must be integers; pass positions in the data set.",
    )
    if found.size:
        low, high = int(found.min()), int(found.max())
        _checks.require(
            low >= 0 and high < count,
            f"rows span {low} to {high} but must lie in [0, {count}); pass positions in the data set.",
        )
    return found.astype(np.int32)
