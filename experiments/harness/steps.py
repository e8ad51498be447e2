"""Training steps with what is noted of each on the device."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import Batch, BatchSelector
from crest_jax.loop import several_steps

SEGMENTS = 20  # of a run, in which picks are counted
NONE_BAD = np.int32(2**31 - 1)


class Trained(NamedTuple):
    """What steps change.

    Attributes:
      network: the network's training state.
      picks: [SEGMENTS, n], int32, how often each example was trained on.
      bad: [], int32, the first step, from 1, with a NaN or infinity; ``NONE_BAD`` before there is one.
      step: [], int32, steps taken.
    """

    network: Any
    picks: jax.Array
    bad: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Counted:
    """A training step that also notes what it trained on: ``(trained, batch) -> (trained, measured)``.

    Attributes:
      train_step: ``(network, batch) -> (network, measured)``.
      steps: of the run.
    """

    train_step: Callable[[Any, Batch], tuple[Any, Any]]
    steps: int

    def __call__(self, trained: Trained, batch: Batch) -> tuple[Trained, Any]:
        """Take a step."""
        network, measured = self.train_step(trained.network, batch)
        picks = trained.picks.at[trained.step * SEGMENTS // self.steps, batch.indices].add(1)
        bad = jnp.minimum(trained.bad, jnp.where(measured.bad, trained.step + 1, NONE_BAD))
        return Trained(network, picks, bad, trained.step + 1), measured


def view(trained: Trained) -> tuple[Any, Any]:
    """Return the parameters and the model state."""
    return trained.network.params, trained.network.model_state


def losses_of(measured: Any) -> jax.Array:
    """Return the losses [m] of a step."""
    return measured.losses


def take_steps(
    selection: BatchSelector, step: Counted, selected: Any, trained: Trained, number: int
) -> tuple[Any, Trained, jax.Array]:
    """Choose mini-batches and train on them, in one program where the selection can.

    Args:
      selection: how mini-batches are chosen.
      step: the training step.
      selected: state of the selection.
      trained: given away.
      number: steps; 1 where mini-batches need the host.

    Returns:
      The states, and the last step's loss.
    """
    if selection.traced is None:
        selected, batch = selection.next_batch(selected)
        trained, measured = _one(step, trained, batch)
        return selection.observe(selected, batch, measured.losses), trained, measured.loss
    found = several_steps(selection, step, selected, trained, number, view=view, losses=losses_of)
    selected, trained, measured = found
    return selected, trained, measured.loss[-1]


@partial(jax.jit, static_argnames="step", donate_argnames="trained")
def _one(step: Counted, trained: Trained, batch: Batch) -> tuple[Trained, Any]:
    return step(trained, batch)


def between(selection: BatchSelector) -> tuple[Callable[..., tuple[Any, Any]], Callable[[Any], int]]:
    """Return what the host calls between programs, and how it asks for the steps of the next one."""
    traced = selection.traced
    return (selection.refresh, lambda state: 1) if traced is None else (traced.refresh, traced.quiet)
