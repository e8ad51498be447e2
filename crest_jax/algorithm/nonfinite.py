"""NaN and infinite numbers in CREST: begin anew where they may be skipped, else stop."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import Mesh

from crest_jax.algorithm.state import CrestState
from crest_jax.data.devices import place

TRIES = 3  # anchors that are tried before bad numbers stop the run


def begin_finite(
    begin: Callable[[CrestState], tuple[CrestState, float, bool]], state: CrestState, mesh: Mesh | None
) -> tuple[CrestState, float, bool]:
    """Begin a region, on other examples where loss or curvature of those drawn first is bad.

    Args:
      begin: begins a region and returns the loss at its anchor, and whether all scores were finite.
      state: state of CREST.
      mesh: the devices that the state lies on.
    """
    state = state._replace(all_finite=place(jnp.ones((), bool), mesh))
    found, loss, finite = begin(state)
    names = ("moments", "reference_norm", "num_regions", "all_finite")
    for _ in range(TRIES - 1):
        if math.isfinite(loss) and math.isfinite(found.curvature_norm):
            break
        kept = {name: getattr(state, name) for name in names}
        found, loss, finite = begin(found._replace(**kept))
    return found, loss, finite


def stop_if_not_finite(state: CrestState, loss: float | None, *, scores: bool) -> None:
    """Raise ``FloatingPointError`` for a bad loss or curvature, or where ``scores`` is false."""
    where = f"(region {state.num_regions})"
    for name, value in (("loss on the probe rows", loss), ("curvature's norm", state.curvature_norm)):
        if value is not None and not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value} at step {state.step} {where} but must be finite; lower the "
                "learning rate or look for bad inputs."
            )
    stop_if_bad_scores(state, finite=scores)


def stop_if_bad_scores(state: CrestState, *, finite: bool) -> None:
    """Raise ``FloatingPointError`` where not all losses and embeddings were finite."""
    where = f" (region {state.num_regions})" if state.num_regions else ""
    if not finite:
        raise FloatingPointError(
            "a loss or an embedding of the scored examples was NaN or infinite before step "
            f"{state.step}{where} but all must be finite; lower the learning rate, or look for bad "
            "inputs or labels without a logit."
        )
