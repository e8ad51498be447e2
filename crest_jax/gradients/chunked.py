"""Embedding many examples: in chunks, in one program or one after the other."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.data.arrays import count_of, rows_valid
from crest_jax.data.devices import to_host
from crest_jax.data.sources import padded_chunks
from crest_jax.types import Array, EmbedFn, Examples, ModelState, Params, PyTree, Source

_AHEAD = 32  # chunks under way before the first of them is read: the device waits for nothing


def embedded(
    embed_fn: EmbedFn, params: Params, model_state: ModelState, examples: Examples
) -> tuple[PyTree, Array]:
    """Embed examples [b], and refuse embeddings [b, ...] or losses [b] that have not one row for each.

    Raises:
      ValueError: when they have not; while tracing.

    Example:
      >>> embed = lambda params, state, examples: (examples.inputs, examples.inputs.sum(1))
      >>> embedded(embed, {}, {}, Examples(jnp.ones((2, 3)), jnp.zeros(2, int)))[1].tolist()
      [3.0, 3.0]
    """
    embeddings, losses = embed_fn(params, model_state, examples)
    count, leaves = count_of(examples), jax.tree.leaves(embeddings)
    shapes = [tuple(leaf.shape) for leaf in leaves]
    _checks.require(
        bool(shapes) and all(shape[:1] == (count,) for shape in shapes),
        f"embed_fn returned embeddings of shape {_checks.brief(shapes)} for {count} examples but every "
        f"leaf must have shape ({count}, ...), one row for each; take no mean over the examples.",
    )
    remedy = "leave out the mean and any axis of length 1"
    _checks.one_each("embed_fn returned losses of shape", losses, count, remedy)
    return embeddings, losses


def in_chunks(
    embed_fn: EmbedFn, params: Params, model_state: ModelState, examples: Examples, chunk: int
) -> tuple[PyTree, Array]:
    """Embed examples [b] in chunks inside one program, which needs less memory and cache.

    Args:
      embed_fn: see ``logit_gradients``.
      params: model parameters.
      model_state: model state.
      examples: [b].
      chunk: static; the last chunk holds what remains.

    Example:
      >>> embed = lambda params, state, examples: (examples.inputs, examples.inputs.sum(1))
      >>> examples = Examples(jnp.ones((5, 3)), jnp.zeros(5, int))
      >>> in_chunks(embed, {}, {}, examples, 2)[1].tolist()
      [3.0, 3.0, 3.0, 3.0, 3.0]
    """
    count = count_of(examples)
    if chunk >= count:
        return embedded(embed_fn, params, model_state, examples)
    whole = count - count % chunk
    stacked = jax.tree.map(lambda x: x[:whole].reshape(whole // chunk, chunk, *x.shape[1:]), examples)
    parts = jax.lax.map(lambda part: embedded(embed_fn, params, model_state, part), stacked)
    found = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), parts)
    if whole == count:
        return found
    rest = embedded(embed_fn, params, model_state, jax.tree.map(lambda x: x[whole:], examples))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), found, rest)


def bytes_needed(
    embed_fn: EmbedFn, params: Params, model_state: ModelState, examples: Examples, *, keeps: bool
) -> int:
    """Return about how many bytes embedding examples [b] takes, from shapes alone.

    Twice what the largest operation reads and writes; where the pass keeps its values for one that goes
    back, all that is written.

    Args:
      embed_fn: see ``logit_gradients``.
      params: model parameters, or their shapes.
      model_state: model state, or its shapes.
      examples: [b], or their shapes.
      keeps: whether values are kept.

    Example:
      >>> embed = lambda params, state, examples: (2 * examples.inputs, examples.inputs.sum(1))
      >>> bytes_needed(embed, {}, {}, Examples(jnp.ones((5, 3)), jnp.zeros(5, int)), keeps=False)
      248
    """
    traced = jax.make_jaxpr(partial(embedded, embed_fn))(params, model_state, examples)
    sizes = list(_bytes_of(traced.jaxpr))
    return sum(written for _, written in sizes) if keeps else 2 * max(map(sum, sizes), default=0)


def _bytes_of(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """Yield the bytes that each operation reads and writes."""
    for equation in jaxpr.eqns:
        inside = [x for value in equation.params.values() for x in jax.tree.leaves(value)]
        inside = [getattr(x, "jaxpr", x) for x in inside if hasattr(getattr(x, "jaxpr", x), "eqns")]
        for part in inside:
            yield from _bytes_of(part)
        if not inside:
            read, written = (
                sum(v.aval.size * v.aval.dtype.itemsize for v in side if hasattr(v.aval, "dtype"))
                for side in (equation.invars, equation.outvars)
            )
            yield read, written


def embed_rows(
    embed_fn: EmbedFn,
    params: Params,
    model_state: ModelState,
    source: Source,
    rows: np.ndarray,
    *,
    chunk_size: int = 512,
) -> tuple[PyTree, np.ndarray]:
    """Embed many rows in padded chunks of one shape, so that one compiled program serves all.

    Args:
      embed_fn: see ``logit_gradients``; pass a jitted function to compile it once.
      params: model parameters.
      model_state: model state.
      source: the data.
      rows: [k], positions in the data set.
      chunk_size: rows per call.

    Returns:
      Embeddings (a tree of NumPy arrays [k, ...]) and losses [k].

    Raises:
      ValueError: when ``rows`` are empty or no rows of the source, ``chunk_size`` is below 1, or
        ``embed_fn`` returns other shapes.
      FloatingPointError: when an embedding or a loss is NaN or infinite.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.ones((5, 3), np.float32), np.zeros(5, int))
      >>> embed = lambda params, state, examples: (examples.inputs, examples.inputs.sum(1))
      >>> embed_rows(embed, {}, {}, source, np.arange(5), chunk_size=2)[0].shape
      (5, 3)
    """
    _checks.positive_int("chunk_size", chunk_size)
    rows = np.asarray(rows)
    _checks.require(
        rows.ndim == 1 and len(rows) > 0,
        f"rows have shape {rows.shape} but must hold at least one position; pass rows [k], k >= 1.",
    )
    rows = rows_valid(rows, _checks.rows_in(source))
    parts: list[Any] = []
    ahead: deque[tuple[Any, np.ndarray]] = deque()

    def read() -> None:
        out, mask = ahead.popleft()
        parts.append(jax.tree.map(lambda x: to_host(x)[mask], out))

    for positions, mask in padded_chunks(len(rows), chunk_size):
        examples = source.take(jnp.asarray(rows[positions]))
        ahead.append((embedded(embed_fn, params, model_state, examples), mask))
        if len(ahead) > _AHEAD:
            read()
    while ahead:
        read()
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
        raise FloatingPointError(
            f"an embedding or a loss of {len(rows)} scored examples is NaN or infinite but all must be "
            "finite; lower the learning rate, or look for bad inputs or labels without a logit."
        )
    return found
