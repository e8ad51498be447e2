"""Training steps, one or several in a program, and what is noted of each on the device."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import Batch

SEGMENTS = 20  # of a run, in which picks are counted
NONE_BAD = np.int32(2**31 - 1)


class Trained(NamedTuple):
    """What steps change.

    Attributes:
      network: the network's training state.
      picks: [SEGMENTS, n], int32, how often each example was trained on.
      bad: [], int32, the first step, from 1, with a NaN or infinity; ``NONE_BAD`` before there is one.
    """

    network: Any
    picks: jax.Array
    bad: jax.Array


@partial(jax.jit, static_argnames=("train_step", "steps"), donate_argnames="trained")
def take_steps(
    train_step: Any, trained: Trained, batch: Batch, first: jax.Array, steps: int
) -> tuple[Trained, Any]:
    """Take a step with a mini-batch, or steps with several [k, m, ...]; memory is taken over.

    Args:
      train_step: static, ``(network, batch) -> (network, measured)``.
      trained: given away.
      batch: one mini-batch or several.
      first: [], int32, steps taken before.
      steps: static, steps of the run.

    Returns:
      What was trained, and what each step measured.
    """

    def one(trained: Trained, now: tuple[Batch, jax.Array]) -> tuple[Trained, Any]:
        own, step = now
        network, measured = train_step(trained.network, own)
        picks = trained.picks.at[step * SEGMENTS // steps, own.indices].add(1)
        bad = jnp.minimum(trained.bad, jnp.where(measured.bad, step + 1, NONE_BAD))
        return Trained(network, picks, bad), measured

    if batch.indices.ndim == 1:
        return one(trained, (batch, first))
    number = jnp.arange(batch.indices.shape[0], dtype=jnp.int32)
    return jax.lax.scan(one, trained, (batch, first + number))
