"""What every form of lazy greedy remembers."""

from typing import NamedTuple

from crest_jax.types import Array


class Run(NamedTuple):
    """A greedy run so far, or done.

    Attributes:
      cover: [n], float32, dissimilarity to the nearest pick; -inf for padding.
      nearest: [n], int32, slot of the nearest pick.
      bounds: [m], float32, upper bounds of gains; -1 for candidates that cannot be picked.
      best: [m / BLOCK], float32, largest bound of each block.
      stamp: [m], int32, number of picks when the gain was last evaluated exactly.
      picks: [size], int32.
      gains: [size], float32.
      taken: [], int32, picks so far.
      evaluations: [], int32, candidates evaluated against all clients.
      entries: [], int32, length of the lists; 0 when none was built.
      top: [], float32, dissimilarity at which the similarity is 0.
      quota: [], int32, picks wanted; lowered to ``taken`` when a rule ends the run.
      left: [], int32, units of the budget that are left; 0 without costs.
    """

    cover: Array
    nearest: Array
    bounds: Array
    best: Array
    stamp: Array
    picks: Array
    gains: Array
    taken: Array
    evaluations: Array
    entries: Array
    top: Array
    quota: Array
    left: Array
