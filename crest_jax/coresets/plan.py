"""Which method a selection would take, and what it needs: arithmetic on sizes, no data touched."""

import math
from typing import NamedTuple

from crest_jax import _checks
from crest_jax.coresets.lists import BUILD_ROWS, EXTRACT
from crest_jax.coresets.oracles import TILE, padded

METHODS = ("auto", "dense", "lazy", "push", "stochastic", "partitioned")
DEFAULT_BUDGET = 256 * 2**20
DENSE_CLASS = 768  # largest class for which "auto" stores similarities
EXACT_CLASS = 100_000  # largest class for which "auto" stays exact on a CPU
PUSH_CLASS = 200_000  # and on an accelerator
MOST_PENDING = 8192  # clients that push greedy pushes in a turn, at most
# Of an H100: seconds a kernel, bytes and floating-point operations a second that small kernels reach.
KERNEL, BYTES, OPERATIONS = 4.5e-6, 2e12, 2e13
DENSE_PAIRS = 750_000  # pairs that the dense form holds at once, unless one problem has more
ENTRIES_PER_ROW = 320  # a little later the lists are shorter, and cheaper to build and to read


class Plan(NamedTuple):
    """What a selection would do and need, before any work.

    Attributes:
      method: "dense", "lazy", "push", "stochastic" or "partitioned".
      exact: whether each pick has the largest gain (to float32 rounding).
      memory: bytes of working memory, above the embeddings themselves.
      dissimilarities: rough number of dissimilarities computed.
      capacity: entries of the lists of "lazy".
      draws: candidates per pick of "stochastic".
      part: rows per part of "partitioned".
      guarantee: what is known about the objective.
      pending: clients that push greedy pushes in a turn; 0 where it is not used.
      at_once: problems that "dense" solves in one program.
      seconds: rough time on an H100, with nothing to compile; None on a CPU, and where not estimated.
    """

    method: str
    exact: bool
    memory: int
    dissimilarities: float
    capacity: int
    draws: int
    part: int
    guarantee: str
    pending: int = 0
    at_once: int = 1
    seconds: float | None = None


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
      plain: nothing but how many picks are wanted, where from and what rows count.
      room: bytes, a quarter of the memory of the accelerator that will do the work; None: a CPU.
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
    plain: bool = True
    room: int | None = None


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
    budget = memory_budget or shape.room or DEFAULT_BUDGET
    _checks.require(
        method != "push" or (shape.plain and not shape.matrix),
        'method is "push" but costs, an end other than a size, positions as initial and given '
        'similarities are not for it; choose "lazy".',
    )
    if memory_budget is not None:
        _checks.positive_int("memory_budget", memory_budget)
    if method == "auto" and shape.room is not None:
        plan = _fastest(shape, budget, epsilon)
    elif method == "auto":
        if shape.matrix or shape.exact or shape.largest <= EXACT_CLASS:
            order = ["dense", "lazy"] if shape.largest <= DENSE_CLASS else ["lazy"]
        else:
            order = ["partitioned"]
        plans = [_plan(name, shape, budget, epsilon) for name in order]
        fitting = [plan for plan in plans if plan.memory <= budget]
        plan = fitting[0] if fitting else min(plans, key=lambda plan: plan.memory)
    else:
        plan = _plan(method, shape, budget, epsilon)
    if shape.room is None:  # the estimates are an accelerator's
        plan = plan._replace(seconds=None)
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
        side = sides[1]
        each = 3 * side * side + 8 * side * (shape.width + 4) + 4 * side * shape.rounds
        each *= 4 * shape.classes
        cached = DENSE_PAIRS // (shape.classes * sides[0] * side)
        at_once = min(shape.problems, max(1, cached if shape.room is None else budget // each))
        memory = at_once * each
        cost = shape.problems * shape.classes * (1.0 + shape.rounds / 4) * side * side
        turns = -(-shape.problems // at_once) * shape.rounds
        pairs = shape.problems * shape.classes * side * side
        seconds = turns * 6 * KERNEL + pairs * (
            4.0 * shape.rounds / BYTES + 3 * shape.width / OPERATIONS
        )
        return Plan("dense", True, memory, cost, 0, 0, 0, EXACT, 0, at_once, seconds)
    base = _working_set(shape, wide)
    if method == "lazy":
        room = max(0, budget - base - 8 * EXTRACT) // 8
        most = min(ENTRIES_PER_ROW * wide, wide * wide, 2**31 - 1 - 2 * EXTRACT)
        capacity = min(room, most)
        memory = base + 8 * (capacity + EXTRACT)
        passes = 3 + 1.2 * math.log2(max(2, min(shape.rounds, wide * wide / max(1, capacity))))
        cost = shape.problems * shape.classes * passes * wide * wide
        # Some 325 kernels a pick: loops whose length the device decides.
        seconds = shape.problems * shape.size * 325 * KERNEL
        return Plan("lazy", True, memory, cost, capacity, 0, 0, EXACT, seconds=seconds)
    if method == "push":
        return _push_plan(shape, budget, wide)
    if method == "stochastic":
        draws = max(1, min(shape.largest, math.ceil(shape.share * math.log(1 / epsilon))))
        cost = float(shape.problems) * shape.size * draws * wide
        memory = base + 12 * draws
        text = f"at least 1 - 1/e - {epsilon:g} of the best objective in expectation"
        return Plan("stochastic", False, memory, cost, 0, draws, 0, text)
    part = part_rows(shape.size)
    pending = 0 if shape.room is None else min(MOST_PENDING, padded(part))
    parts = max(1, -(-shape.rows // part))
    union = parts * shape.size
    # The picks of all parts, with a copy by class, against a sample of one part's size.
    base = 2 * _working_set(shape, padded(part)) + 4 * padded(union) * (2 * shape.width + 10)
    capacity = max(0, min(budget - base - 8 * EXTRACT, 8 * ENTRIES_PER_ROW * padded(part))) // 8
    memory = base + 8 * (capacity + EXTRACT)
    cost = (parts * part + union) * 4.0 * part
    return Plan("partitioned", False, memory, cost, capacity, 0, part, _PARTS, pending)


def _fastest(shape: Shape, budget: int, epsilon: float) -> Plan:
    """Choose for an accelerator: what fits and takes the least time."""
    names = ["dense"]
    if not shape.matrix and shape.plain:
        names.append("push")
    plans = [_plan(name, shape, budget, epsilon) for name in names]
    fitting = [plan for plan in plans if plan.memory <= budget]
    if not (shape.matrix or shape.exact) and shape.largest > PUSH_CLASS:
        return _plan("partitioned", shape, budget, epsilon)
    if fitting:
        return min(fitting, key=lambda plan: plan.seconds or 0.0)
    return _plan("lazy", shape, budget, epsilon)


def plan_of_part(part: int, size: int, room: int | None) -> Plan:
    """Return how a part of so many rows of a stream is chosen from, exactly; ``room`` as of ``Shape``.

    Example:
      >>> plan_of_part(8192, 100, None).method
      'lazy'
    """
    shape = Shape(part, 1, part, size, size, part / size, 1, 1, False, room=room)
    return make_plan(shape, "lazy" if room is None else "push", room or DEFAULT_BUDGET, 0.1)


def _push_plan(shape: Shape, budget: int, wide: int) -> Plan:
    base = 4 * wide * (4 * shape.width + 40) + 8 * 256 * wide
    pending = max(64, min(MOST_PENDING, wide, (budget - base) // (8 * wide)))
    memory, groups = base + 8 * wide * pending, shape.problems * shape.classes
    phases = 1 + math.ceil(math.log(max(2, shape.rounds), 4))
    # All gains anew in every phase; then about 3 n / t clients pushed after t picks, and nine rows.
    pairs = wide * wide * (phases + 3 * math.log(1 + shape.rounds)) + 9.0 * wide * shape.rounds
    seconds = groups * (28 * KERNEL * shape.rounds + pairs * (3 * shape.width + 6) / OPERATIONS)
    return Plan("push", True, memory, groups * pairs, 0, 0, 0, EXACT, pending, seconds=seconds)


def dense_sides(largest: int) -> tuple[int, int]:
    """Clients and candidates that a class is padded to in the dense form."""
    return -(-largest // 4) * 4, -(-largest // 16) * 16


def part_rows(size: int) -> int:
    """Rows per part: enough to choose from, few enough for a part to be cheap."""
    return padded(max(2 * size, min(8 * size, 65_536), 8_192))


def _working_set(shape: Shape, wide: int) -> int:
    """Bytes of the greedy run itself: rows copied in two layouts, states, and blocks of results."""
    if shape.matrix:
        copied = 0 if shape.largest == shape.rows else 4 * wide * wide
        return copied + 4 * wide * (12 + 3 * BUILD_ROWS)
    return 4 * wide * (3 * shape.width + 32 + 2 * BUILD_ROWS // 8) + 3 * 4 * 64 * TILE
