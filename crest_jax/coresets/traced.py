"""``select_coreset`` inside ``jit`` and ``vmap``, where no values are known."""

from typing import Any

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.coresets import metrics
from crest_jax.coresets.asked import Asked
from crest_jax.coresets.by_class import Settings, choose_by_class, members_of
from crest_jax.coresets.mini_batch import medoids
from crest_jax.coresets.nearest import weighted
from crest_jax.coresets.plan import Shape, make_plan
from crest_jax.coresets.similarities import is_sparse
from crest_jax.data.quotas import covered_as_a_whole, proportional_quotas
from crest_jax.types import Array, Coreset, Factored, PyTree


def select_traced(
    embeddings: PyTree,
    size: int | None,
    labels: Any,
    num_classes: int | None,
    metric: str,
    gamma: float | None,
    quotas: Any,
    method: str,
    epsilon: float,
    key: Array | None,
    asked: Asked,
) -> Coreset:
    """Choose from traced arrays; see ``select_coreset``, whose arguments these are.

    Raises:
      ValueError: on shapes and options that are not for traced arrays.
    """
    embeddings = _arrays(embeddings, metric)
    leaves = jax.tree.leaves(embeddings)
    count = leaves[0].shape[0]
    _checks.require(
        isinstance(quotas, str) and quotas == "proportional" and method != "partitioned",
        f"quotas are {_checks.brief(quotas)} and method is {method!r}, but inside jit and vmap quotas "
        'are proportional and the method is not "partitioned"; select outside.',
    )
    _checks.require(
        labels is None or num_classes is not None,
        "num_classes is None but the arrays are traced, so the range of the labels is unknown; pass "
        "num_classes when calling select_coreset inside jit or vmap.",
    )
    weights, allowed, first = _traced_extras(asked, count, labels, method, size)
    assert size is not None
    _checks.require(size <= count, f"size is {size} but must lie in [1, {count}]; choose a size there.")
    _checks.require(
        size * count < 2**31,
        f"size times examples is {size * count} but must be below 2^31 inside jit, where quotas are "
        "computed in int32; select outside or from parts of the pool.",
    )
    classes = 1 if labels is None or num_classes is None else num_classes
    labels = _codes(labels, num_classes, count)
    key = None if key is None else _checks.prng_key("key", key)
    if method in ("auto", "dense"):
        return medoids(
            embeddings, labels, size=size, num_classes=classes, metric=metric, gamma=gamma,
            sample_weights=weights, allowed=allowed, first=first,
        )  # fmt: skip
    width = sum(leaf.shape[-1] for leaf in leaves)
    shape = Shape(count, width, count, size, size, count / size, classes, 1, metric == "precomputed")
    plan = make_plan(shape, method, None, epsilon)
    aside = covered_as_a_whole(members_of(labels, classes).counts, size)
    labels = jnp.where(aside, 0, labels)
    members = members_of(labels, classes)
    points, kind, unit = metrics.prepare(embeddings, metric, gamma)
    settings = Settings(size, size, count, count, kind, plan.capacity, plan.draws, plan.pending)
    chosen = choose_by_class(
        points, members, None, members, proportional_quotas(members.counts, size, most=count), None,
        jax.random.key(0) if key is None else key, settings=settings,
    )  # fmt: skip
    found = weighted(
        points, labels, chosen.picks, chosen.gains, chosen.nearest, chosen.top, kind, "spread"
    )
    return found._replace(gains=found.gains * unit, objective=found.objective * unit)


def _traced_extras(
    asked: Asked, count: int, labels: Any, method: str, size: int | None
) -> tuple[Array | None, Array | None, Array | None]:
    """Return sample weights [n], the mask of candidates [n] and the first picks [k], shapes checked."""
    _checks.require(
        not asked.ends and asked.budget is None and size is not None,
        "costs, budget, stop_gain or coverage are given, or no size, but inside jit the number of "
        "picks must be known; select outside.",
    )
    _checks.require(
        not asked.any or method in ("auto", "dense"),
        f'method is {method!r} but inside jit sample_weights, initial and candidates need "dense"; '
        "choose it, or select outside.",
    )
    places = asked.initial is not None or asked.candidates is not None
    _checks.require(
        not places or labels is None,
        "labels are given beside initial or candidates but inside jit these are for one class; select "
        "outside.",
    )
    weights, allowed, first = (
        None if value is None else jnp.asarray(value)
        for value in (asked.sample_weights, asked.candidates, asked.initial)
    )
    _checks.require(
        weights is None or weights.shape == (count,),
        f"sample_weights have shape {getattr(weights, 'shape', None)} but must have shape ({count},); "
        "pass one number for each row.",
    )
    _checks.require(
        allowed is None or (allowed.shape == (count,) and allowed.dtype == bool),
        f"candidates are {_checks.brief(allowed)} but inside jit they must be a mask of shape "
        f"({count},); pass booleans.",
    )
    _checks.require(
        first is None
        or (first.ndim == 1 and first.dtype.kind in "iu" and size is not None and len(first) <= size),
        f"initial are {_checks.brief(first)} but inside jit they must be whole numbers [k], at most "
        f"size, which is {size}; pass positions.",
    )
    weights = None if weights is None else weights.astype(jnp.float32)
    first = None if first is None or not len(first) else first.astype(jnp.int32)
    return weights, allowed, first


def _arrays(embeddings: PyTree, metric: str) -> PyTree:
    """Return embeddings as arrays, shapes checked."""
    _checks.require(
        not is_sparse(embeddings),
        "similarities are a sparse matrix beside other arrays inside jit; select outside.",
    )
    embeddings = jax.tree.map(jnp.asarray, embeddings)
    leaves = jax.tree.leaves(embeddings)
    _checks.require(
        all(leaf.ndim == 2 and leaf.dtype.kind != "c" for leaf in leaves)
        and (len(leaves) == 1 or isinstance(embeddings, Factored)),
        f"embeddings have shapes {_checks.brief([leaf.shape for leaf in leaves])} but inside jit they "
        "must be one real array [n, d], or Factored; for several problems use jax.vmap.",
    )
    count = leaves[0].shape[0]
    _checks.require(
        metric != "precomputed" or leaves[0].shape == (count, count),
        f"similarities have shape {leaves[0].shape} but must be square inside jit; select outside.",
    )
    return embeddings


def _codes(labels: Any, num_classes: int | None, count: int) -> Array:
    """Return labels [n], int32, shape and kind checked."""
    if labels is None:
        return jnp.zeros(count, jnp.int32)
    labels = jnp.asarray(labels)
    _checks.require(
        labels.shape == (count,) and labels.dtype.kind in "iub",
        f"labels have shape {labels.shape} and dtype {labels.dtype} but must be integers of shape "
        f"({count},); pass one class per example.",
    )
    _checks.positive_int("num_classes", num_classes)
    return labels.astype(jnp.int32)
