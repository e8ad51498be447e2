"""Names and shapes that the whole library shares; no logic lives here.

In shapes, ``n`` is the number of examples, ``r`` the size of a random subset, ``m`` the size of a
mini-batch, ``c`` the number of classes and ``d`` the dimension of an embedding. *Rows* are positions
in the data set, *picks* are positions in a subset.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
PyTree = Any
Params = Any
ModelState = Any


class Examples(NamedTuple):
    """Examples as a model takes them."""

    inputs: Array  # [b, ...]
    labels: Array  # [b], int32


class Batch(NamedTuple):
    """One mini-batch: the loss of a step is ``sum(weights * losses) / sum(weights)``."""

    inputs: Array  # [m, ...]
    labels: Array  # [m], int32
    weights: Array  # [m], float32, positive
    rows: Array  # [m], int32, positions in the data set


class Coreset(NamedTuple):
    """A weighted subset of a pool of ``n`` examples."""

    indices: Array  # [m], int32, positions in the pool, in the order of the greedy choice
    weights: Array  # [m], float32, examples that each pick stands for; they sum to n
    gains: Array  # [m], float32, growth of the objective at each pick
    objective: Array  # [], float32, sum of the gains


class Source(Protocol):
    """Random access to a data set."""

    labels: np.ndarray  # [n], int32, the class of every example, for stratified draws
    num_classes: int

    def __len__(self) -> int:
        """Return the number of examples."""

    def take(self, rows: Array) -> Examples:
        """Return the examples at ``rows`` [b], in that order."""


class ApplyFn(Protocol):
    """A model as a pure function.

    ``train=True`` returns the updated model state (BatchNorm statistics, say); ``train=False`` must
    be deterministic, must treat every example by itself, and returns the state as it was.
    """

    def __call__(
        self, params: Params, model_state: ModelState, inputs: Array, *, train: bool, rng: Array | None
    ) -> tuple[Array, ModelState]:
        """Return the logits [b, c] and the model state."""


# (name, function, *arguments) -> function(*arguments), timed or traced under that name
PhaseFn = Callable[..., Any]
LossFn = Callable[[Array, Array], Array]  # (logits [b, c], labels [b]) -> losses [b]


def ignore_losses(state: Any, batch: Batch, losses: Array) -> Any:
    """Return the state as it was: the ``observe`` of methods that do not ask for losses."""
    del batch, losses
    return state


class Selection(NamedTuple):
    """A way of choosing mini-batches, as pure functions of a state; every method has these four.

    * ``init(key, params, model_state) -> state``
    * ``refresh(state, params, model_state) -> (state, event or None)``, called before every step;
      it does nothing until there is something to do.
    * ``next_batch(state) -> (state, batch)``
    * ``observe(state, batch, losses) -> state``, called after every step with the losses [m] that the
      step computed anyway; most methods ignore them.
    """

    init: Callable[[Array, Params, ModelState], Any]
    refresh: Callable[[Any, Params, ModelState], tuple[Any, Any]]
    next_batch: Callable[[Any], tuple[Any, Batch]]
    observe: Callable[[Any, Batch, Array], Any] = ignore_losses
