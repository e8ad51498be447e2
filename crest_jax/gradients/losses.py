"""Per-example losses and the weighted mean that a mini-batch coreset is trained on."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.types import Array, LossFn, PyTree, Source

_ONE, _NAN = 0x3F800000, 0x7FC00000  # the bits of these float32 numbers


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return softmax cross-entropy losses [b], float32, of logits [b, c] for integer labels [b].

    Of sequences and images, logits [b, ..., c] for labels [b, ...], it is the mean over an example's
    positions. Inside ``jit`` the loss and its gradient are NaN where a label is outside ``[0, c)``.

    Raises:
      ValueError: on other shapes, on labels that are no integers and, where the labels have values now,
        on a label outside ``[0, c)``.

    Example:
      >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1])).tolist()
      [0.6931471824645996]
    """
    logits, labels, known = _logits_and_labels(logits, labels)
    losses = jax.nn.logsumexp(logits, axis=-1) - _at(logits, labels)
    losses = losses if known else losses * one_or_nan(labels, logits.shape[-1])
    return losses if losses.ndim == 1 else jnp.mean(losses, axis=tuple(range(1, losses.ndim)))


def _at(logits: Array, labels: Array) -> Array:
    """Return the logits [b, ...] at the labels, at the nearest ones where there are none."""
    own = jnp.clip(labels, 0, logits.shape[-1] - 1)
    return jnp.take_along_axis(logits, own[..., None], axis=-1, mode="clip")[..., 0]


def one_or_nan(labels: Array, classes: int) -> Array:
    """Return float32, in the shape of the labels: 1 where a label is in ``[0, classes)``, else NaN.

    The NaN comes from its bits, so that ``jax_debug_nans`` sees none where all labels are right.

    Example:
      >>> one_or_nan(jnp.array([0, 2, -1]), 2).tolist()
      [1.0, nan, nan]
    """
    inside = (labels >= 0) & (labels < classes)
    bits = jnp.where(inside, jnp.int32(_ONE), jnp.int32(_NAN))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _logits_and_labels(logits: Any, labels: Any) -> tuple[Array, Array, bool]:
    """Check both; return logits in float32, labels of 32 bits or more, and whether they had values."""
    shape, own = np.shape(logits), np.shape(labels)
    _checks.require(
        len(shape) >= 2 and shape[-1] > 0,
        f"logits have shape {shape} but must have shape [b, c], one row for each example, or "
        "[b, ..., c]; return a logit for each class.",
    )
    _checks.require(
        own == shape[:-1],
        f"labels have shape {own} for logits of shape {shape} but must have shape {shape[:-1]}; pass "
        "one integer class per example (labels.argmax(1) of one-hot rows), or per position.",
    )
    class_numbers(jnp.result_type(labels))
    known = _checks.is_concrete(labels) and getattr(labels, "is_fully_addressable", True)
    if known and np.size(labels):
        values = np.asarray(labels)
        low, high = int(values.min()), int(values.max())
        _checks.require(
            low >= 0 and high < shape[-1],
            f"label {high if low >= 0 else low} has no logit of its own among {shape[-1]} logits but "
            f"labels must lie in [0, {shape[-1]}); renumber the classes from 0 or give the model more "
            "logits.",
        )
    labels = jnp.asarray(labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    return jnp.asarray(logits).astype(jnp.float32), labels, known


def class_numbers(kind: Any) -> None:
    """Require labels of a type to be class numbers.

    Raises:
      ValueError: when they are not.

    Example:
      >>> class_numbers(np.int32)
    """
    _checks.require(
        jnp.issubdtype(kind, jnp.integer),
        f"labels have dtype {kind} but must be integers; cast class numbers to int32, or pass a "
        "loss_fn of your own.",
    )


def label_span(labels: PyTree) -> tuple[int, int] | None:
    """Return the lowest and the highest of class numbers [n]; None for labels that are none.

    Example:
      >>> label_span(np.array([2, 0, 5])), label_span(np.array([0.5, 1.0]))
      ((0, 5), None)
    """
    if getattr(labels, "ndim", 0) != 1 or labels.dtype.kind not in "iu":
        return None
    return int(np.min(labels)), int(np.max(labels))


def labels_fit(span: tuple[int, int], logits: int) -> None:
    """Require a model of so many logits to have one for every label of the data, of a certain span.

    Raises:
      ValueError: when it has not.

    Example:
      >>> labels_fit((0, 2), 3)
    """
    low, high = span
    _checks.require(
        low >= 0,
        f"the lowest label is {low} but the model's {logits} logits are for labels 0 to {logits - 1}; "
        "renumber the classes from 0 with np.unique(labels, return_inverse=True)[1].",
    )
    _checks.require(
        high < logits,
        f"the highest label is {high} but the model returns {logits} logits, for labels 0 to "
        f"{logits - 1}; renumber the classes from 0 or give the model {high + 1} logits.",
    )


@dataclasses.dataclass(frozen=True)
class _Fitting:
    span: tuple[int, int]

    def __call__(self, logits: Array, labels: Array) -> Array:
        labels_fit(self.span, np.shape(logits)[-1])
        return cross_entropy(logits, labels)


def is_cross_entropy(loss_fn: LossFn) -> bool:
    """Return whether a loss is ``cross_entropy``, also as ``fitting`` returns it.

    Example:
      >>> is_cross_entropy(cross_entropy), is_cross_entropy(lambda logits, labels: labels)
      (True, False)
    """
    return loss_fn is cross_entropy or isinstance(loss_fn, _Fitting)


def fitting(loss_fn: LossFn, source: Source) -> LossFn:
    """Return the loss, which refuses, when first traced, logits too few for all labels of a source.

    Losses other than ``cross_entropy``, and labels that are no class numbers, stay as they are.

    Example:
      >>> from types import SimpleNamespace
      >>> source = SimpleNamespace(labels=np.array([0, 1]))
      >>> fitting(cross_entropy, source)(jnp.zeros((1, 2)), jnp.array([1])).tolist()
      [0.6931471824645996]
    """
    span = label_span(getattr(source, "labels", None))
    return loss_fn if loss_fn is not cross_entropy or span is None else _Fitting(span)


def per_example(loss_fn: LossFn, logits: PyTree, labels: PyTree) -> Array:
    """Return the losses [b] of a loss function for logits [b, ...] and labels [b, ...].

    Raises:
      ValueError: when it does not return one number for each example; while tracing.

    Example:
      >>> per_example(cross_entropy, jnp.zeros((1, 2)), jnp.array([1])).tolist()
      [0.6931471824645996]
    """
    losses = loss_fn(logits, labels)
    count = np.shape(jax.tree.leaves((labels, logits))[0])[0]
    _checks.one_each("loss_fn returned losses of shape", losses, count)
    return losses


def weighted_mean(losses: Array, weights: Array) -> Array:
    """Return ``sum(weights * losses) / sum(weights)`` [] for losses [m] and weights [m].

    In float64 where the losses are, else in float32.

    Raises:
      ValueError: when the shapes are not both [m].

    Example:
      >>> float(weighted_mean(jnp.array([1.0, 4.0]), jnp.array([2.0, 1.0])))
      2.0
    """
    shape, own = np.shape(losses), np.shape(weights)
    _checks.require(
        len(shape) == 1 and shape == own,
        f"losses have shape {shape} and weights {own} but both must be [m], one for each example; "
        "flatten the losses, and take no mean of them before.",
    )
    kind = jnp.float64 if jnp.result_type(losses) == jnp.float64 else jnp.float32
    losses, weights = jnp.asarray(losses, kind), jnp.asarray(weights, kind)
    return jnp.sum(weights * losses) / jnp.sum(weights)
