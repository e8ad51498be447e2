"""Which method a selection would take, and what it needs: arithmetic on sizes, no data touched."""

import math
from typing import NamedTuple

import numpy as np

from crest_jax import _checks
from crest_jax.facility_location import proportional_quotas
from crest_jax.lazy_greedy import BUILD_ROWS, EXTRACT
from crest_jax.oracles import TILE, padded

METHODS = ("auto", "dense", "lazy", "stochastic", "partitioned")
DEFAULT_BUDGET = 256 * 2**20
DENSE_CLASS = 768  # largest class for which "auto" stores similarities
EXACT_CLASS = 100_000  # largest class for which "auto" stays exact
DENSE_PAIRS = 750_000  # pairs that the dense form holds at once, unless one problem has more
ENTRIES_PER_ROW = 320  # a little later the lists are shorter, and cheaper to build and to read


class Plan(NamedTuple):
    """What a selection would do and need, before any work."""

    method: str  # "dense", "lazy", "stochastic" or "partitioned"
    exact: bool  # whether each pick has the largest gain (to float32 rounding)
    memory: int  # bytes of working memory, above the embeddings themselves
    dissimilarities: float  # rough number of dissimilarities computed
    capacity: int  # entries of the lists of "lazy"
    draws: int  # candidates per pick of "stochastic"
    part: int  # rows per part of "partitioned"
    guarantee: str  # what is known about the objective


class Shape(NamedTuple):
    """The size of a selection problem."""

    rows: int  # n, examples in one pool
    width: int  # d, floats of one embedding
    largest: int  # examples of the largest class, or n without classes
    size: int  # m
    rounds: int  # largest quota
    share: float  # largest ratio of a class to its quota
    classes: int
    problems: int  # P
    matrix: bool  # similarities are given


_EXACT = "the greedy choice: at least 1 - 1/e of the best objective"
_PARTS = (
    "greedy in parts and among their picks: at least (1 - 1/e) / 2 of the best objective in "
    "expectation for parts assigned at random, up to the error of judging by a sample"
)


def make_plan(shape: Shape, method: str, memory_budget: int | None, epsilon: float) -> Plan:
    """Choose a method for a problem, or check the one asked for.

    Raises:
      ValueError: when the budget is smaller than the method (with "auto": any method) needs.

    Example:
      >>> shape = Shape(20_000, 10, 20_000, 2_000, 2_000, 10.0, 1, 1, False)
      >>> make_plan(shape, "auto", 64 * 2**20, 0.1).method
      'lazy'
    """
    budget = DEFAULT_BUDGET if memory_budget is None else memory_budget
    if memory_budget is not None:
        _checks.positive_int("memory_budget", memory_budget)
    if method == "auto":
        if shape.matrix or shape.largest <= EXACT_CLASS:
            order = ["dense", "lazy"] if shape.largest <= DENSE_CLASS else ["lazy"]
        else:
            order = ["partitioned"]
        plans = [_plan(name, shape, budget, epsilon) for name in order]
        fitting = [plan for plan in plans if plan.memory <= budget]
        plan = fitting[0] if fitting else min(plans, key=lambda plan: plan.memory)
    else:
        plan = _plan(method, shape, budget, epsilon)
    _checks.require(
        memory_budget is None or plan.memory <= budget,
        f"memory_budget is {budget} bytes but {plan.method!r} needs at least {plan.memory} above the "
        f"embeddings; raise memory_budget to {plan.memory}.",
    )
    return plan


def _plan(method: str, shape: Shape, budget: int, epsilon: float) -> Plan:
    wide = padded(shape.largest)
    if method == "dense":
        # similarities twice (as read, and padded to whole vectors), in blocks of problems
        sides = dense_sides(shape.largest)
        block = min(shape.problems, problems_at_once(shape.classes, sides)) * shape.classes
        side = sides[1]
        memory = 4 * block * (3 * side * side + 8 * side * (shape.width + 4) + 4 * side * shape.rounds)
        cost = shape.problems * shape.classes * (1.0 + shape.rounds / 4) * side * side
        return Plan("dense", True, memory, cost, 0, 0, 0, _EXACT)
    base = _working_set(shape, wide)
    if method == "lazy":
        room = max(0, budget - base - 8 * EXTRACT) // 8
        most = min(ENTRIES_PER_ROW * wide, wide * wide, 2**31 - 1 - 2 * EXTRACT)
        capacity = min(room, most)
        memory = base + 8 * (capacity + EXTRACT)
        passes = 3 + 1.2 * math.log2(max(2, min(shape.rounds, wide * wide / max(1, capacity))))
        cost = shape.problems * shape.classes * passes * wide * wide
        return Plan("lazy", True, memory, cost, capacity, 0, 0, _EXACT)
    if method == "stochastic":
        draws = max(1, min(shape.largest, math.ceil(shape.share * math.log(1 / epsilon))))
        cost = float(shape.problems) * shape.size * draws * wide
        memory = base + 12 * draws
        text = f"at least 1 - 1/e - {epsilon:g} of the best objective in expectation"
        return Plan("stochastic", False, memory, cost, 0, draws, 0, text)
    part = part_rows(shape.size)
    parts = max(1, -(-shape.rows // part))
    union = parts * shape.size
    # The picks of all parts, with a copy by class, against a sample of one part's size.
    base = 2 * _working_set(shape, padded(part)) + 4 * padded(union) * (2 * shape.width + 10)
    capacity = max(0, min(budget - base - 8 * EXTRACT, 8 * ENTRIES_PER_ROW * padded(part))) // 8
    memory = base + 8 * (capacity + EXTRACT)
    cost = (parts * part + union) * 4.0 * part
    return Plan("partitioned", False, memory, cost, capacity, 0, part, _PARTS)


def dense_sides(largest: int) -> tuple[int, int]:
    """Clients and candidates that a class is padded to in the dense form."""
    return -(-largest // 4) * 4, -(-largest // 16) * 16


def problems_at_once(classes: int, sides: tuple[int, int]) -> int:
    """Problems that the dense form solves in one program."""
    return max(1, DENSE_PAIRS // (classes * sides[0] * sides[1]))


def part_rows(size: int) -> int:
    """Rows per part: enough to choose from, few enough for a part to be cheap."""
    return padded(max(2 * size, min(8 * size, 65_536), 8_192))


def _working_set(shape: Shape, wide: int) -> int:
    """Bytes of the greedy run itself: rows copied in two layouts, states, and blocks of results."""
    if shape.matrix:
        copied = 0 if shape.largest == shape.rows else 4 * wide * wide
        return copied + 4 * wide * (12 + 3 * BUILD_ROWS)
    return 4 * wide * (3 * shape.width + 32 + 2 * BUILD_ROWS // 8) + 3 * 4 * 64 * TILE


def quotas_for(
    counts: np.ndarray, size: int, quotas: object, names: np.ndarray | None = None
) -> np.ndarray:
    """Return how many picks each class of each problem gets, [p, c].

    Args:
      counts: [p, c], examples of each class.
      size: picks in all.
      quotas: "proportional" (see ``proportional_quotas``), "equal" (as equal as possible, the larger
        share to the lower class) or the quotas [c] themselves.
      names: [c], what the classes are called in a sentence; None: their places.

    Raises:
      ValueError: when the quotas cannot be met.

    Example:
      >>> quotas_for(np.array([[5, 5, 10]]), 10, "proportional").tolist()
      [[3, 2, 5]]
      >>> quotas_for(np.array([[5, 5, 10]]), 10, "equal").tolist()
      [[4, 3, 3]]
    """
    counts = np.asarray(counts, np.int64)
    classes = counts.shape[1]
    if isinstance(quotas, str):
        _checks.require(
            quotas in ("proportional", "equal"),
            f'quotas is {_checks.brief(quotas)} but must be "proportional", "equal" or one number for '
            "each class; choose one of these.",
        )
        if quotas == "equal":
            each = size // classes + (np.arange(classes) < size % classes)
            found = np.broadcast_to(each, counts.shape)
        else:
            found = proportional_quotas(counts, size, np)
    else:
        each = np.asarray(quotas)
        _checks.require(
            each.shape == (classes,)
            and np.issubdtype(each.dtype, np.integer)
            and bool((each >= 0).all()),
            f"quotas have shape {each.shape} and dtype {each.dtype} but must be {classes} non-negative "
            "integers, one for each class; pass one number of picks for each class.",
        )
        _checks.require(
            int(each.sum()) == size,
            f"quotas sum to {int(each.sum())} but size is {size} and they must agree; change one.",
        )
        found = np.broadcast_to(each.astype(np.int64), counts.shape)
    short = found > counts
    if short.any():
        problem, label = (int(x) for x in np.argwhere(short)[0])
        name = label if names is None else names.tolist()[label]
        raise ValueError(
            f"quotas ask for {found[problem, label]} picks of class {_checks.brief(name)} but it has "
            f"{counts[problem, label]} examples and none is chosen twice; lower this quota or choose "
            'quotas="proportional".'
        )
    return np.ascontiguousarray(found)
