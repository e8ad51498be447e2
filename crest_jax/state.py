"""What CREST remembers between steps, and what it tells."""

from typing import Any, NamedTuple

from crest_jax.curvature import Moments
from crest_jax.exclusion import Exclusion
from crest_jax.region import Region
from crest_jax.streams import RowStream
from crest_jax.types import Array


class Work(NamedTuple):
    """Examples passed through the model so far, beside the training steps; a tangent pass counts."""

    selection_forward: int = 0
    selection_backward: int = 0
    check_forward: int = 0
    curvature_forward: int = 0
    curvature_backward: int = 0


class CrestState(NamedTuple):
    """The state of CREST: host numbers that steer, beside device arrays."""

    step: int  # batches handed out
    cursor: int  # steps that those held have served
    held: int  # coresets held in `rows` and `weights`
    interval: int  # T1
    next_check: int  # step of the next check
    window_end: int  # step at which the exclusion window closes
    reference_norm: float  # |H_0|, NaN until it is taken
    norm: float  # |H_l| of the current region
    regions: int  # regions begun
    selected: int  # coresets selected
    unused: int  # coresets thrown away before a step used them
    excluded: int  # examples out of play
    work: Work
    finite: Array  # [], bool: all losses and embeddings seen so far were finite
    key: Array
    stream: RowStream
    exclusion: Exclusion
    moments: Moments
    region: Region
    rows: Array  # [max_coresets, m], int32
    weights: Array  # [max_coresets, m], float32


class Event(NamedTuple):
    """What a refresh did; all fields are Python values."""

    step: int
    reason: str  # "start", "error", "exhausted", "nonfinite": a region began; "held": it goes on;
    # "random": batches are random from here on; "window": between random batches, examples left or
    # returned
    region: int  # number of the current region, from 1
    rho: float | None  # relative error of the quadratic model, None without a check
    loss: float | None  # mean loss of the probe rows now, None when not measured
    interval: int  # T1
    coresets: int  # coresets selected now
    selected: int  # coresets selected so far
    unused: int  # coresets thrown away so far
    excluded: int  # examples out of play
    curvature_norm: float
    work: Work


def count_work(state: CrestState, **passes: int) -> CrestState:
    """Add examples passed through the model to the counters of ``Work``.

    Example:
      >>> class Counted(NamedTuple):
      ...     work: Work
      >>> count_work(Counted(Work()), check_forward=3).work.check_forward
      3
    """
    counts = {name: getattr(state.work, name) + more for name, more in passes.items()}
    return state._replace(work=state.work._replace(**counts))


def call(name: str, function: Any, *args: Any) -> Any:
    """Run one phase without timing it: the default ``PhaseFn``.

    Example:
      >>> call("selection", max, 1, 2)
      2
    """
    del name
    return function(*args)
