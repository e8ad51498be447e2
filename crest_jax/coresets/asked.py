"""What users ask of a selection beside a size: checked, or refused in one sentence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.numbers import real_array
from crest_jax.types import Coreset, Factored


class Asked(NamedTuple):
    """Arguments of ``select_coreset`` as they are given; None: not given.

    Attributes:
      sample_weights: [n].
      initial: [k] positions, or rows [k, d] of elsewhere.
      candidates: [k] positions, a mask [n], or rows [k, d] of elsewhere.
      costs: of the candidates.
      budget: for the costs.
      stop_gain: least gain of a pick.
      coverage: share of the largest possible objective that is enough.
    """

    sample_weights: Any = None
    initial: Any = None
    candidates: Any = None
    costs: Any = None
    budget: Any = None
    stop_gain: Any = None
    coverage: Any = None

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return any(value is not None for value in self)

    @property
    def exact_only(self) -> bool:
        """Whether nothing but an exact method will do."""
        return self.ends or self.initial is not None or self.candidates is not None

    @property
    def ends(self) -> bool:
        """Whether something beside a size ends the choice."""
        return not (self.costs is None and self.stop_gain is None and self.coverage is None)


class Extras(NamedTuple):
    """What is asked for, checked, for ``p`` pools of ``n`` rows; None: nothing of that kind.

    Attributes:
      weights: [p, n], float64.
      first: [p, k], int64, rows that are picked already.
      allowed: [p, n], bool, rows that may be picked.
      earlier: rows [k, d] of elsewhere that cover the pool already, or ``Factored``.
      others: rows [k, d] of elsewhere that are the candidates, or ``Factored``.
      costs: [m], float64, of the rows or of the others.
      budget: for the costs.
      stop_gain: see ``Asked``.
      coverage: see ``Asked``.
    """

    weights: np.ndarray | None
    first: np.ndarray | None
    allowed: np.ndarray | None
    earlier: Any
    others: Any
    costs: np.ndarray | None
    budget: float
    stop_gain: float | None
    coverage: float | None

    @property
    def pickable(self) -> np.ndarray | None:
        """Rows [p, n] that may be picked, or are picked already; None: all."""
        if self.allowed is None or self.first is None:
            return self.allowed
        found = self.allowed.copy()
        np.put_along_axis(found, self.first, True, axis=1)
        return found


def checked(
    asked: Asked, embeddings: Any, shape: tuple[int, ...], rows: int, metric: str, labels: Any
) -> Extras:
    """Check what is asked for, but for what depends on quotas.

    Args:
      asked: as given.
      embeddings: as from ``rows_of``.
      shape: (n,), or (p, n) for ``p`` problems, of what is chosen from.
      rows: what is to be covered.
      metric: of the embeddings.
      labels: None or not.

    Raises:
      ValueError: on what cannot be meant, in one sentence.
    """
    batched, count = len(shape) == 2, shape[-1]
    weights = None
    if asked.sample_weights is not None:
        weights = _weights(asked.sample_weights, (*shape[:-1], rows)).reshape(-1, rows)
    first, earlier = None, None
    if asked.initial is not None:
        earlier = _elsewhere("initial", asked.initial, embeddings, metric, labels, batched)
        if earlier is None:
            pools = shape[0] if batched else 1
            first = _positions("initial", asked.initial, shape).reshape(pools, -1)
            _no_repeats(first)
            first = first if first.shape[1] else None
    allowed, others = None, None
    if asked.candidates is not None:
        others = _elsewhere("candidates", asked.candidates, embeddings, metric, labels, batched)
        if others is None:
            allowed = _mask(asked.candidates, shape).reshape(-1, count)
        _checks.require(
            others is None or first is None,
            "initial are positions in the pool but candidates are rows of elsewhere, so that no pick "
            "is in the pool; pass initial as rows too.",
        )
    costs, budget = None, 0.0
    if asked.costs is not None or asked.budget is not None:
        number = count if others is None else len(jax.tree.leaves(others)[0])
        costs, budget = _costs(asked, number, batched, labels)
        _affordable(costs, budget, first, allowed)
    _checks.require(
        not (batched and asked.ends),
        "stop_gain or coverage is given but embeddings are several problems, whose coresets would "
        "differ in size; call select_coreset once for each.",
    )
    stop_gain = _positive("stop_gain", asked.stop_gain) if asked.stop_gain is not None else None
    if asked.coverage is not None:
        _positive("coverage", asked.coverage)
        _checks.in_range("coverage", asked.coverage, 0.0, 1.0, open_low=True)
    return Extras(weights, first, allowed, earlier, others, costs, budget, stop_gain, asked.coverage)


def _weights(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = _numbers("sample_weights", given, shape)
    _checks.require(
        bool((values >= 0).all() and (values.max(axis=-1) > 0).all()),
        f"sample_weights lie between {values.min():g} and {values.max():g} but must be at least 0 and "
        "not all 0; pass how much each row counts.",
    )
    return values


def _numbers(name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(real_array(given, name)).astype(np.float64)
    _checks.require(
        values.shape == shape,
        f"{name} have shape {values.shape} but must have shape {shape}; pass one number for each row.",
    )
    _checks.require(
        bool(np.isfinite(values).all()),
        f"{name} hold {int((~np.isfinite(values)).sum())} NaN or infinite numbers but must be finite; "
        "replace them.",
    )
    return values


def _positive(name: str, value: Any) -> float:
    number = isinstance(value, (int, float, np.number)) or np.ndim(value) == 0
    try:
        found = float(value) if number and not isinstance(value, (bool, str)) else np.nan
    except TypeError:
        found = np.nan
    _checks.require(
        bool(0 < found < np.inf),
        f"{name} is {_checks.brief(value)} but must be a positive finite number; pass one, or leave it "
        "out.",
    )
    return found


def _elsewhere(name: str, given: Any, embeddings: Any, metric: str, labels: Any, batched: bool) -> Any:
    """Return rows of elsewhere in the form of the embeddings, or None where positions are given."""
    _checks.require(
        not isinstance(given, Coreset),
        f"{name} is a Coreset but must be positions or rows; pass its indices.",
    )
    if not isinstance(given, Factored):
        array = real_array(given, name)
        if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype.kind == "b" or not array.size:
            return None
        given = array
        _checks.require(
            array.ndim == 2 or batched,
            f"{name} have dtype {array.dtype} and shape {array.shape} but must be positions (whole "
            "numbers) or rows [k, d]; cast positions to int.",
        )
    _checks.require(
        metric != "precomputed" and not batched and labels is None,
        f'{name} are rows of elsewhere, which metric "precomputed", labels and several problems leave '
        "without similarities or a class; pass positions in the pool.",
    )
    own, wanted = jax.tree.leaves(given), jax.tree.leaves(embeddings)
    fits = len(own) == len(wanted) and all(
        x.ndim == 2 and x.shape[1] == y.shape[1] for x, y in zip(own, wanted, strict=True)
    )
    shapes = [tuple(x.shape) for x in own], [tuple(y.shape) for y in wanted]
    _checks.require(
        fits,
        f"{name} have shapes {shapes[0]} but embeddings have {shapes[1]}; pass rows of the same width.",
    )
    bad = sum(int((~np.isfinite(np.asarray(x, np.float64))).sum()) for x in own)
    _checks.require(
        bad == 0, f"{name} hold {bad} NaN or infinite numbers but must be finite; drop these rows."
    )
    return given


def _positions(name: str, given: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(given)
    _checks.require(
        values.dtype.kind in "iu" or not values.size,
        f"{name} have dtype {values.dtype} but must be positions in the pool, whole numbers; pass "
        "np.flatnonzero(mask) for a mask.",
    )
    _checks.require(
        values.ndim == len(shape) and values.shape[:-1] == shape[:-1],
        f"{name} have shape {values.shape} but must be positions {'[p, k]' if shape[1:] else '[k]'}, "
        "or rows of real numbers; flatten positions, or cast rows to float.",
    )
    wrong = values[(values < 0) | (values >= shape[-1])]
    _checks.require(
        not wrong.size,
        f"{name} hold {wrong[0] if wrong.size else 0} but positions must lie in [0, {shape[-1]}); "
        "count rows of the pool from 0.",
    )
    return values.astype(np.int64)


def _no_repeats(first: np.ndarray) -> None:
    for own in first:
        found, counts = np.unique(own, return_counts=True)
        _checks.require(
            bool((counts == 1).all()),
            f"initial hold {found[counts.argmax()] if len(found) else 0} more than once but no example "
            "is chosen twice; drop the repeats.",
        )


def _mask(given: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(given)
    if values.dtype.kind == "b":
        _checks.require(
            values.shape == shape,
            f"candidates are a mask of shape {values.shape} but must have shape {shape}; pass one "
            "boolean for each row, or positions.",
        )
        found = values
    else:
        places = _positions("candidates", values, shape)
        found = np.zeros(shape, bool)
        np.put_along_axis(found, places, True, axis=-1)
    _checks.require(
        bool(found.any(axis=-1).all()),
        "candidates leave nothing to pick but one row at least must be allowed; pass some positions.",
    )
    return found


def _costs(asked: Asked, number: int, batched: bool, labels: Any) -> tuple[np.ndarray, float]:
    _checks.require(
        asked.costs is not None,
        f"budget is {_checks.brief(asked.budget)} but there are no costs; pass costs, or size instead.",
    )
    _checks.require(
        asked.budget is not None,
        "costs are given without a budget, so that they would bind nothing; pass budget.",
    )
    _checks.require(
        labels is None and not batched,
        "costs are given beside labels or several problems but a budget is that of one pool; select "
        "in each by itself.",
    )
    _checks.require(
        asked.stop_gain is None and asked.coverage is None,
        "costs are given beside stop_gain or coverage but either the budget or these end a choice; "
        "pass one of them.",
    )
    costs = _numbers("costs", asked.costs, (number,))
    _checks.require(
        bool((costs > 0).all()),
        f"costs reach down to {costs.min():g} but must be positive; give free rows a small cost.",
    )
    return costs, _positive("budget", asked.budget)


def _affordable(
    costs: np.ndarray, budget: float, first: np.ndarray | None, allowed: np.ndarray | None
) -> None:
    if first is not None:
        spent = costs[first[0]].sum()
        _checks.require(
            bool(spent <= budget * (1 + 1e-9)),
            f"initial cost {spent:g} together but the budget is {budget:g}; raise budget or drop some.",
        )
        return
    least = costs.min() if allowed is None else costs[allowed[0]].min()
    _checks.require(
        bool(least <= budget),
        f"budget is {budget:g} but the cheapest candidate costs {least:g}; raise budget.",
    )


def check_method(asked: Asked, method: str) -> None:
    """Refuse methods that cannot do what is asked for.

    Example:
      >>> check_method(Asked(coverage=0.9), "lazy")
    """
    given = [name for name, value in asked._asdict().items() if value is not None]
    strange = [name for name in given if name != "sample_weights"] if method == "partitioned" else []
    if method == "stochastic":
        strange = [name for name in given if name in ("costs", "budget", "stop_gain")]
    _checks.require(
        not strange,
        f"{strange[0] if strange else ''} is given but method is {method!r}, which looks at samples or "
        'parts of the candidates; choose "lazy" or "dense".',
    )


def check_size(asked: Asked, size: Any) -> None:
    """Require a size, or something that ends a choice without one.

    Example:
      >>> check_size(Asked(coverage=0.9), None)
    """
    if size is not None:
        _checks.positive_int("size", size)
        return
    _checks.require(
        asked.ends,
        "size is None but nothing else ends the choice; pass size, costs together with a budget, "
        "stop_gain or coverage.",
    )
