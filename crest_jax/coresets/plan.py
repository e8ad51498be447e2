"""Which method a selection would take, and what it needs: arithmetic on sizes, no data touched."""

import math
from typing import NamedTuple

from crest_jax import _checks
from crest_jax.coresets.lists import BUILD_ROWS, EXTRACT
from crest_jax.coresets.oracles import TILE, padded

METHODS = ("auto", "dense", "lazy", "stochastic", "partitioned")
DEFAULT_BUDGET = 256 * 2**20
DENSE_CLASS = 768  # largest class for which "auto" stores similarities
EXACT_CLASS = 100_000  # largest class for which "auto" stays exact
DENSE_PAIRS = 750_000  # pairs that the dense form holds at once, unless one problem has more
ENTRIES_PER_ROW = 320  # a little later the lists are shorter, and cheaper to build and to read


class Plan(NamedTuple):
    """What a selection would do and need, before any work.

    Attributes:
      method: "dense", "lazy", "stochastic" or "partitioned".
      exact: whether each pick has the largest gain (to float32 rounding).
      memory: bytes of working memory, above the embeddings themselves.
      dissimilarities: rough number of dissimilarities computed.
      capacity: entries of the lists of "lazy".
      draws: candidates per pick of "stochastic".
      part: rows per part of "partitioned".
      guarantee: what is known about the objective.
    """

    method: str
    exact: bool
    memory: int
    dissimilarities: float
    capacity: int
    draws: int
    part: int
    guarantee: str


class Shape(NamedTuple):
    """The size of a selection problem.

    Attributes:
      rows: n, examples in one pool.
      width: d, floats of one embedding.
      largest: examples of the largest class, or n without classes.
      size: m.
      rounds: largest quota.
      share: largest ratio of a class to its quota.
      classes: c, classes that occur.
      problems: P.
      matrix: similarities are given.
      exact: nothing but an exact method will do.
    """

    rows: int
    width: int
    largest: int
    size: int
    rounds: int
    share: float
    classes: int
    problems: int
    matrix: bool
    exact: bool = False


EXACT = "the greedy choice: at least 1 - 1/e of the best objective"
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
        if shape.matrix or shape.exact or shape.largest <= EXACT_CLASS:
            order = ["dense", "lazy"] if shape.largest <= DENSE_CLASS else ["lazy"]
        else:
            order = ["partitioned"]
        plans = [_plan(name, shape, budget, epsilon) for name in order]
        fitting = [plan for plan in plans if plan.memory <= budget]
        plan = fitting[0] if fitting else min(plans, key=lambda plan: plan.memory)
    else:
        plan = _plan(method, shape, budget, epsilon)
    return check_budget(plan, memory_budget)


def check_budget(plan: Plan, memory_budget: int | None) -> Plan:
    """Return a plan that keeps to a budget; None is kept by all.

    Raises:
      ValueError: when it needs more.
    """
    if memory_budget is not None:
        _checks.positive_int("memory_budget", memory_budget)
    _checks.require(
        memory_budget is None or plan.memory <= memory_budget,
        f"memory_budget is {memory_budget} bytes but {plan.method!r} needs at least {plan.memory} "
        f"above the embeddings; raise memory_budget to {plan.memory}.",
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
        return Plan("dense", True, memory, cost, 0, 0, 0, EXACT)
    base = _working_set(shape, wide)
    if method == "lazy":
        room = max(0, budget - base - 8 * EXTRACT) // 8
        most = min(ENTRIES_PER_ROW * wide, wide * wide, 2**31 - 1 - 2 * EXTRACT)
        capacity = min(room, most)
        memory = base + 8 * (capacity + EXTRACT)
        passes = 3 + 1.2 * math.log2(max(2, min(shape.rounds, wide * wide / max(1, capacity))))
        cost = shape.problems * shape.classes * passes * wide * wide
        return Plan("lazy", True, memory, cost, capacity, 0, 0, EXACT)
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
