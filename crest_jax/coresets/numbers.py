"""Rows of any real type as float32 numbers that neither vanish, overflow nor cancel."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.metrics import ROOM
from crest_jax.types import Array

ArrayOf = np.ndarray | Array
USUAL = (-20, 40)  # exponents of the largest entry for which squares neither vanish nor overflow
AT_ONCE = 1 << 22  # entries moved at once


def real_array(value: Any, name: str = "embeddings") -> ArrayOf:
    """Return an array of real numbers in the machine's byte order, or refuse in one sentence.

    Lists of batches [b, d] are joined to [n, d]. The type of the numbers stays.

    Args:
      value: an array, or anything that NumPy makes one of; a list of arrays [b, d].
      name: what the sentence calls it.

    Raises:
      ValueError: on sparse matrices, masked entries, complex numbers, text, dates, dictionaries,
        lists whose entries differ in shape.

    Example:
      >>> real_array([np.zeros((2, 3)), np.ones((1, 3))]).shape
      (3, 3)
    """
    if isinstance(value, jax.Array):
        kind = value.dtype
        found: ArrayOf = value
    else:
        found = _from_others(value, name)
        kind = found.dtype
    number = jnp.issubdtype(kind, jnp.floating) or kind.kind in "iub"
    _checks.require(
        number,
        f"{name} have dtype {kind} but must be real numbers; pass real and imaginary parts as columns."
        if kind.kind == "c"
        else f"{name} have dtype {kind} but must be real numbers; encode them as numbers first.",
    )
    return found


def _from_others(value: Any, name: str) -> np.ndarray:
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise ValueError(
            f"{name} are {_checks.brief(value)} but must be an array [n, d]; pass one row of numbers "
            "for each example."
        )
    if isinstance(value, (list, tuple)) and len(value) and np.ndim(_first(value)) == 2:
        pieces = [real_array(piece, name) for piece in value]
        shapes = {tuple(piece.shape[1:]) for piece in pieces}
        _checks.require(
            len(shapes) == 1 and pieces[0].ndim == 2,
            f"{name} are a {type(value).__name__} of {len(pieces)} arrays of {len(shapes)} different "
            "widths but batches must all be [b, d]; pass batches of one width, or "
            "crest_jax.Factored(left, right) for outer products.",
        )
        return np.concatenate([np.asarray(piece) for piece in pieces])
    found = _checks.host_array(value, name, "pass one row of d numbers for each example")
    if found.dtype != object:
        return found
    try:
        return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} are {_checks.brief(value)} but must make one array of numbers "
            f"({_checks.brief(str(error))}); pass one row of d numbers for each example."
        ) from None


def _first(value: Any) -> Any:
    first = value[0]
    return first if hasattr(first, "shape") else np.empty(_nesting(first))


def _nesting(value: Any) -> tuple[int, ...]:
    """Axes of nested lists, each counted as 0 long."""
    return (0, *_nesting(value[0])) if isinstance(value, (list, tuple)) and len(value) else ()


@jax.jit
def _largest_on_device(leaf: Array) -> Array:
    values, axes = leaf.astype(jnp.float32), tuple(range(1, leaf.ndim))
    # XLA's maxima on a CPU pass over NaN in arrays of more than some two thousand numbers.
    finite = jnp.all(jnp.isfinite(values), axis=axes)
    return jnp.where(finite, jnp.max(jnp.abs(values), axis=axes), jnp.nan)


def largest_of(part: ArrayOf, batched: bool) -> np.ndarray:
    """Return the largest absolute value of each problem [p], float64.

    Args:
      part: [n, d], or [p, n, d] if ``batched``.
      batched: whether there are several problems.

    Raises:
      ValueError: when one is NaN or infinite.

    Example:
      >>> largest_of(np.array([[1, -3]]), batched=False).tolist()
      [3.0]
    """
    flat = part if batched else part[None]
    if isinstance(part, jax.Array):
        found = np.asarray(_largest_on_device(flat), np.float64)
        if not found.all():  # numbers below 1e-38 count as 0 on most devices
            found = np.abs(np.asarray(flat, np.float64)).max(axis=tuple(range(1, flat.ndim)))
    else:
        host = np.asarray(flat)
        if host.dtype.kind in "iub":
            axes = tuple(range(1, host.ndim))
            low, high = host.min(axis=axes).astype(np.float64), host.max(axis=axes).astype(np.float64)
            return np.maximum(np.abs(low), np.abs(high))
        found = np.abs(host).max(axis=tuple(range(1, host.ndim))).astype(np.float64)
    if not np.isfinite(found).all():
        refuse_infinite(np.asarray(part), batched)
    return found


def refuse_infinite(values: np.ndarray, batched: bool) -> None:
    """Refuse NaN and infinite entries, by their number."""
    values = values.reshape((-1, values.shape[-1]) if batched else (values.shape[0], -1))
    bad = np.asarray(~np.isfinite(values.astype(np.float64)).all(axis=1))
    if not bad.any():  # finite as they are, but not in float64
        raise ValueError(
            "embeddings reach beyond the largest float64 but must fit it; divide them all by one "
            "number, which changes no pick."
        )
    raise ValueError(
        f"embeddings of {int(bad.sum())} of {len(bad)} examples are NaN or infinite (the first is row "
        f"{int(bad.argmax())}) but must be finite; check the model's loss or drop these rows."
    )


def exponents_of(largest: np.ndarray) -> np.ndarray:
    """Return by which powers of two parts are multiplied, from their largest entries [parts, p].

    0 where squares, and products of parts, fit float32 well.
    """
    own, parts = np.frexp(largest)[1], len(largest)
    usual = (largest == 0) | ((own >= USUAL[0] // parts) & (own <= USUAL[1] // parts))
    return np.where(usual, 0, ROOM // parts - own)


def float64(part: ArrayOf) -> np.ndarray:
    """Return an array as float64, on the host."""
    host = np.asarray(part)
    wide = host.dtype.kind == "f" and host.dtype.itemsize >= 8
    return host if wide else host.astype(np.float64)


def float32(part: np.ndarray) -> Array:
    """Return an array as float32, on the device."""
    with np.errstate(under="ignore"):
        return jnp.asarray(part.astype(np.float32))


def fits_float32(part: ArrayOf, largest: float) -> bool:
    """Return whether float32 holds the numbers as they are."""
    kind = np.dtype(part.dtype)
    return (jnp.issubdtype(kind, jnp.floating) and kind.itemsize <= 4) or (
        kind.kind in "iub" and largest <= 2**24
    )


def far_middle(host: np.ndarray) -> np.ndarray:
    """Return the middle of each column [..., 1, d] that lies far from the origin, 0 for the others."""
    low, high = (np.asarray(reduce(host, axis=-2, keepdims=True)) for reduce in (np.min, np.max))
    wide = np.longdouble if host.dtype.itemsize >= 8 else np.float64
    low, high = low.astype(wide), high.astype(wide)
    middle, width = low + (high - low) / 2, high - low
    far = (np.minimum(np.abs(low), np.abs(high)) > width) & ((low > 0) == (high > 0))
    # Whole, so that whole numbers are moved without rounding.
    return np.where(far, np.round(middle) if host.dtype.kind in "iu" else middle, 0)


def moved_by(host: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return rows minus a shift in float64."""
    if host.dtype.kind == "f" and host.dtype.itemsize <= 8:
        return host - shift.astype(np.float64)
    moved = np.empty(host.shape, np.float64)
    step = max(1, AT_ONCE // max(1, host[..., :1, :].size))
    for first in range(0, host.shape[-2], step):
        rows = (..., slice(first, first + step), slice(None))
        moved[rows] = host[rows].astype(np.longdouble) - shift
    return moved


def unit_rows(part: ArrayOf) -> tuple[np.ndarray, np.ndarray]:
    """Scale rows [..., d] to length 1 in float64; also return which of them are zero."""
    host = float64(part)
    sizes = np.abs(host).max(axis=-1, keepdims=True)
    unit = np.ldexp(host, -np.frexp(sizes)[1]).astype(np.float64)
    lengths = np.sqrt(np.einsum("...d,...d->...", unit, unit))[..., None]
    return unit / np.where(sizes == 0, 1, lengths), sizes[..., 0] == 0


def less_their_mean(part: ArrayOf) -> np.ndarray:
    """Take the mean of each row off rows [..., d], in float64; a constant row becomes one of zeros.

    Rows are scaled to entries near 1 first, each by a power of two, which changes no direction.

    Example:
      >>> less_their_mean(np.array([[1.0, 3.0], [0.1, 0.1]])).tolist()
      [[-0.125, 0.125], [0.0, 0.0]]
    """
    host = np.asarray(part)
    if host.dtype.kind in "iub":
        # Whole numbers beyond 2^53 keep their differences.
        host = host.astype(np.longdouble)
    host = float64(host)
    sizes = np.frexp(np.abs(host).max(axis=-1, keepdims=True))[1]
    rows = np.ldexp(host, -sizes - 1)
    rows = (rows - rows[..., :1]).astype(np.float64)
    return rows - rows.mean(axis=-1, keepdims=True)


def outside() -> int:
    """Return the stack level, for a warning, of the first caller outside this package."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame, level = frame.f_back, level + 1
    return level
