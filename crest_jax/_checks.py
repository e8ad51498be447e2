"""Host-side validation: every message states the value, the rule and the remedy."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(*arrays: Any) -> bool:
    """Return whether all arrays have values now, that is, none is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


LONGEST = 80  # characters of a value that a message quotes


def brief(value: Any) -> str:
    """Describe a value in a few words, whatever its size.

    Example:
      >>> brief(np.zeros((500, 2))), brief("cosine"), len(brief(list(range(1000)))) <= LONGEST
      ('a float64 array of shape (500, 2)', "'cosine'", True)
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and shape != ():
        return f"a {dtype} array of shape {tuple(shape)}"
    if isinstance(value, (list, tuple, dict, set)) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value)} entries"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def prng_key(name: str, key: Any) -> jax.Array:
    """Return a PRNG key in its new form, from a new or an old one; refuse anything else.

    Both forms of a key draw the same numbers.

    Raises:
      ValueError: on anything but one key.

    Example:
      >>> prng_key("key", jax.random.PRNGKey(0)) == jax.random.key(0)
      Array(True, dtype=bool)
    """
    if isinstance(key, (np.ndarray, jax.Array)):
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return cast(jax.Array, key)
        elif key.dtype == np.uint32 and key.ndim == 1:
            # The bytes of a key tell its kind by their number, for the usual kinds.
            kinds = {2: "threefry2x32", 4: "rbg"}
            if key.shape[0] in kinds:
                return jax.random.wrap_key_data(jnp.asarray(key), impl=kinds[key.shape[0]])
    raise ValueError(
        f"{name} is {brief(key)} but must be one PRNG key; pass jax.random.key(seed) with a seed of "
        "yours."
    )


def default_key(key: Any) -> jax.Array:
    """Return a checked key, that of seed 0 for None."""
    return jax.random.key(0) if key is None else prng_key("key", key)


def positive_int(name: str, value: Any) -> None:
    """Require an integer of at least 1."""
    require(
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1),
        f"{name} is {brief(value)} but must be an integer of at least 1; pass a positive integer.",
    )


def window_count(name: str, value: Any) -> None:
    """Require None, or an integer from 1 to 127: windows that an excluded example stays out."""
    require(
        value is None or (isinstance(value, int) and 1 <= value <= 127),
        f"{name} is {brief(value)} but must be None or an integer from 1 to 127; 4 is usual.",
    )


def in_range(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Require a number, ``low <= value <= high`` (``low < value`` with ``open_low``)."""
    try:
        inside = bool((low < value if open_low else low <= value) and value <= high)
    except (TypeError, ValueError):  # text, None, or an array of several
        inside = False
    bracket = "(" if open_low else "["
    require(
        inside,
        f"{name} is {brief(value)} but must lie in {bracket}{low:g}, {high:g}]; choose a value there.",
    )


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Require one of some names.

    Example:
      >>> one_of("metric", "cosine", ("euclidean", "cosine"))
    """
    require(
        isinstance(value, str) and value in known,
        f"{name} is {brief(value)} but must be one of {', '.join(known)}; choose one.",
    )


def handed_back(losses: Any, rows: Any) -> Any:
    """Return the losses [m] that a training step hands back for the rows [m] of its mini-batch.

    Raises:
      ValueError: when they have another shape or are no floating-point numbers.

    Example:
      >>> handed_back([0.5], jnp.array([3])).tolist()
      [0.5]
    """
    found = losses if isinstance(losses, jax.Array) else np.asarray(losses)
    require(
        found.shape == rows.shape and jnp.issubdtype(found.dtype, jnp.floating),
        f"losses handed to observe are {found.dtype} of shape {tuple(found.shape)} but must be "
        f"floating-point numbers of shape {tuple(rows.shape)}, one for each example; pass the step's "
        "losses before their mean is taken.",
    )
    return found


def one_each(
    what: str,
    values: Any,
    count: int,
    remedy: str = "average over an example's positions, not over examples",
) -> None:
    """Require values of shape [count].

    Args:
      what: begins the sentence, up to the shape that was found.
      values: an array.
      count: examples.
      remedy: ends it.

    Example:
      >>> one_each("loss_fn returned losses of shape", np.zeros(2), 2)
    """
    shape = np.shape(values)
    require(
        shape == (count,),
        f"{what} {shape} for {count} examples but must return one number for each, shape ({count},); "
        f"{remedy}.",
    )


def unmasked(value: Any, name: str) -> None:
    """Require an array, called by a plural, without masked entries.

    Example:
      >>> unmasked(np.zeros(2), "rows")
    """
    require(
        not np.ma.is_masked(value),
        f"{name} have masked entries but all must have a value; fill them or drop their rows.",
    )


def host_array(value: Any, name: str, remedy: str) -> np.ndarray:
    """Return what NumPy makes of a value, in the machine's byte order; its type is not checked.

    Args:
      value: an array-like.
      name: what a sentence calls it, a plural.
      remedy: what to do where its parts differ in shape.

    Raises:
      ValueError: on sparse matrices, masked entries, and parts that differ in shape.

    Example:
      >>> host_array([[1, 2]], "rows", "mend them").shape
      (1, 2)
    """
    require(
        not (hasattr(value, "toarray") or hasattr(value, "todense")),
        f"{name} are a sparse matrix ({type(value).__name__}) but must be dense; pass .toarray(), or "
        "reduce the columns first (sklearn.decomposition.TruncatedSVD) where that does not fit.",
    )
    unmasked(value, name)
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} are {brief(value)} but must make one array of numbers ({brief(str(error))}); "
            f"{remedy}."
        ) from None
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def rows_in(source: Any) -> int:
    """Return the number of examples of a source of data; refuse what is none.

    Example:
      >>> rows_in((np.zeros((2, 3)), np.zeros(2)))
      Traceback (most recent call last):
      ValueError: source is a tuple but must hand out examples; pass ArraySource(inputs, labels).
    """
    array = isinstance(source, (np.ndarray, jax.Array))  # has a take of its own
    require(
        hasattr(source, "__len__") and hasattr(source, "take") and not array,
        f"source is a {type(source).__name__} but must hand out examples; pass ArraySource(inputs, "
        "labels).",
    )
    return len(source)


def model_function(name: str, model: Any, **keywords: Any) -> None:
    """Require a function of parameters, model state, inputs and these keywords.

    Example:
      >>> model_function("features_fn", lambda params, state, inputs: (inputs, inputs @ params))
    """
    try:
        inspect.signature(model).bind(None, None, None, **keywords)
    except TypeError:
        called = ", ".join(["params", "model_state", "inputs", *(f"{key}=..." for key in keywords)])
        raise ValueError(
            f"{name} is a {type(model).__name__} that cannot be called as {name}({called}) but must "
            "be; wrap a Flax model by from_linen or from_nnx."
        ) from None
    except ValueError:  # what is written in C need not tell its arguments
        return


def apply_function(apply_fn: Any) -> None:
    """Require a model as a pure function; see ``ApplyFn``."""
    model_function("apply_fn", apply_fn, train=False, rng=None)


def labels_valid(labels: Any, count: int, num_classes: int | None = None) -> np.ndarray:
    """Require integer labels [count] in ``[0, num_classes)`` and return them as int32."""
    values = np.asarray(labels)
    require(
        values.dtype.kind not in "USO" or values.ndim == 0,
        f"labels have dtype {values.dtype} but must be integers; number the classes with "
        "np.unique(labels, return_inverse=True)[1].",
    )
    require(
        values.ndim == 1 and len(values) == count,
        f"labels have shape {values.shape} but must have shape ({count},), one per example; pass "
        "one integer class per example (labels.argmax(1) of one-hot rows).",
    )
    require(
        values.dtype.kind in "iu",
        f"labels have dtype {values.dtype} but must be integers; cast class numbers to int32.",
    )
    unmasked(labels, "labels")
    if count:
        low, high = int(values.min()), int(values.max())
        limit = min(2**31, np.inf if num_classes is None else num_classes)
        require(
            low >= 0 and high < limit,
            f"labels span {low} to {high} but must lie in [0, {limit}); renumber the classes from 0 "
            "with np.unique(labels, return_inverse=True)[1], or raise num_classes.",
        )
    return values.astype(np.int32)


def not_forked(process: int, what: str) -> None:
    """Require to be in the process with this id still: threads, and JAX, do not survive a fork.

    Raises:
      RuntimeError: in a forked child, where waiting for a thread would never end.

    Example:
      >>> not_forked(os.getpid(), "this began")
    """
    if os.getpid() != process:
        raise RuntimeError(
            f"this is process {os.getpid()} but {what} in process {process}, whose threads a fork does "
            'not copy; start worker processes with "spawn" or "forkserver", or begin in the child, '
            "before JAX is used."
        )
