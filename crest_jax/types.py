"""Names and shapes that the whole library shares; no logic lives here.

In shapes, ``n`` is the number of examples, ``r`` the size of a random subset, ``m`` the size of a
mini-batch, ``c`` the number of classes and ``d`` the dimension of an embedding. *Indices*
are positions in the data set, *picks* are positions in a subset.
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
    """Examples as a model and its loss take them.

    Attributes:
      inputs: an array [b, ...], or a pytree of such arrays (a dict of token ids and a mask, say).
      labels: what the loss compares with: classes [b], int32, or any array [b, ...] or pytree of such
        (numbers, masks, tokens); None where the loss needs none.
    """

    inputs: PyTree
    labels: PyTree


class Batch(NamedTuple):
    """One mini-batch: the loss of a step is ``sum(weights * losses) / sum(weights)``.

    Attributes:
      inputs: [m, ...], an array or a pytree of arrays.
      labels: [m, ...], an array or a pytree of arrays; see ``Examples``.
      weights: [m], float32, positive.
      indices: [m], int32, positions in the data set.
    """

    inputs: PyTree
    labels: PyTree
    weights: Array
    indices: Array


class Coreset(NamedTuple):
    """A weighted subset of a pool of ``n`` examples.

    Attributes:
      indices: [m], int32, positions in the pool, in the order of the greedy choice.
      weights: [m], float32, examples that each pick stands for; they sum to n, or to the sum of the
        sample weights. Less where rows stand for earlier rows of elsewhere.
      gains: [m], float32, growth of the objective at each pick.
      objective: [], float32, sum of the gains, and of what earlier rows of elsewhere cover.
      assignments: [n], int32, place in ``indices`` of the pick that stands for each row; -1 for a row
        that no single pick stands for: it stands for an earlier row of elsewhere, its class has no pick
        and counts at all picks, or no pick is similar to it in a sparse matrix. None
        from ``select_coreset_stream`` and ``select_coreset_sharded``, which do not keep the rows in one
        place.
      coverage: [], float32, the objective over the largest possible one, that of all candidates
        together (in the graph of neighbours, where one is asked for); between 0 and 1. None with the
        metric "dot" from a choice in parts (method "partitioned") and from ``select_coreset_stream``,
        which do not compare all pairs.
    """

    indices: Array
    weights: Array
    gains: Array
    objective: Array
    assignments: Array | None
    coverage: Array | None


class Factored(NamedTuple):
    """Per-example matrices ``left[i] right[i]^T``, stored by their factors.

    Attributes:
      left: [n, c].
      right: [n, d].
    """

    left: Array
    right: Array


class Source(Protocol):
    """Random access to a data set.

    A source may also have ``labels``, those of all examples on the host, ``mesh``, the devices that its
    examples lie on, and one of these: ``arrays`` with ``gather(arrays, indices)``, a value without data
    that does what ``take`` does and that ``jit`` can trace, or ``prefetch(indices)``, which starts to
    fetch examples that ``take`` will be asked for soon. See ``ArraySource`` and ``HostSource``.

    Attributes:
      classes: [n], whole numbers or strings, the class of every example, for stratified draws and
        choices; None: draws are not stratified.
    """

    classes: np.ndarray | None

    def __len__(self) -> int:
        """Return the number of examples."""

    def take(self, indices: Array) -> Examples:
        """Return the examples at ``indices`` [b], in that order."""


class ApplyFn(Protocol):
    """A model as a pure function.

    ``train=True`` returns the updated model state (BatchNorm statistics, say); ``train=False`` must
    be deterministic, must treat every example by itself, and returns the state as it was.
    """

    def __call__(
        self, params: Params, model_state: ModelState, inputs: PyTree, *, train: bool, rng: Array | None
    ) -> tuple[PyTree, ModelState]:
        """Return the logits, [b, c] or whatever the loss takes, and the model state."""


# (name, function, *arguments) -> function(*arguments), timed or traced under that name
PhaseFn = Callable[..., Any]
# (logits [b, ...], labels [b, ...]) -> losses [b], each a function of its own example only
LossFn = Callable[[PyTree, PyTree], Array]
# (params, model_state, inputs) -> (features [b, ..., d], logits [b, ..., c]), in evaluation mode
FeaturesFn = Callable[[Params, ModelState, PyTree], tuple[Array, Array]]


class EmbedFn(Protocol):
    """What facility location compares examples by, and their losses.

    An embedding of your own is any function of this form that ``jit`` can trace. Row ``i`` of each leaf
    depends on example ``i`` only, and distances between rows say how differently two examples would
    move the parameters. Leaves are one array [b, d], or a ``Factored`` pair for outer products; they
    are compared in float32. It is called in evaluation mode, on chunks of a subset, in one program with
    the choice. An attribute ``backward_passes`` says how many gradients it takes for each example;
    without one it counts as none. With one it is given whole subsets, since backward passes of
    convolutions in a loop are slow on a CPU, and keeps to the memory itself.
    """

    def __call__(
        self, params: Params, model_state: ModelState, examples: Examples
    ) -> tuple[PyTree, Array]:
        """Return the embeddings [b, d] of examples [b], and their losses [b]."""


def ignore_losses(state: Any, batch: Batch, losses: Array) -> Any:
    """Return the state as it was: the ``observe`` of methods that do not ask for losses."""
    del batch, losses
    return state


class Inside(Protocol):
    """What a way of choosing mini-batches does inside a program, as ``jit`` can trace it.

    It is a value that holds no data: equal ones share compiled programs. What it reads comes as
    ``fixed``, what it changes as ``changing``, both pytrees of arrays.
    """

    def next_batch(
        self, fixed: Any, changing: Any, params: Params, model_state: ModelState
    ) -> tuple[Any, Batch]:
        """Return what was changed, and the next mini-batch."""

    def observe(self, fixed: Any, changing: Any, batch: Batch, losses: Array) -> Any:
        """Return what the losses [m] of the step change."""


class Traced(NamedTuple):
    """A way of choosing mini-batches for many steps in one program; ``loop.several_steps`` makes it.

    Attributes:
      refresh: ``(state, params, model_state) -> (state, event or None)``: what the host does between
        programs.
      quiet: ``state -> k``, asked after it: most steps in the next program, at least 1.
      open: ``state -> (fixed, changing)``: the arrays that a program reads, and those it changes.
      inside: what it does with them.
      close: ``(state, changing, k) -> state`` after ``k`` steps.
    """

    refresh: Callable[[Any, Params, ModelState], tuple[Any, Any]]
    quiet: Callable[[Any], int]
    open: Callable[[Any], tuple[Any, Any]]
    inside: Inside
    close: Callable[[Any, Any, int], Any]


class BatchSelector(NamedTuple):
    """A way of choosing mini-batches, as pure functions of a state.

    Attributes:
      init: ``(key, params, model_state) -> state``.
      refresh: ``(state, params, model_state) -> (state, event or None)``, called before every step; it
        does nothing until there is something to do.
      next_batch: ``state -> (state, batch)``.
      observe: ``(state, batch, losses) -> state``, called after every step with the losses [m] that the
        step computed anyway; most methods ignore them.
      traced: the same inside a program, for many steps in one; None where a mini-batch needs the host.
    """

    init: Callable[[Array, Params, ModelState], Any]
    refresh: Callable[[Any, Params, ModelState], tuple[Any, Any]]
    next_batch: Callable[[Any], tuple[Any, Batch]]
    observe: Callable[[Any, Batch, Array], Any] = ignore_losses
    traced: Traced | None = None


class Work(NamedTuple):
    """Examples passed through the model so far, beside the training steps; a tangent pass counts.

    Attributes:
      selection_forward: for scoring.
      selection_backward: for scoring, where an embedding takes gradients.
      check_forward: for the loss of the probe examples.
      curvature_forward: for gradient and curvature.
      curvature_backward: for gradient and curvature.
    """

    selection_forward: int = 0
    selection_backward: int = 0
    check_forward: int = 0
    curvature_forward: int = 0
    curvature_backward: int = 0


def untimed(name: str, function: Any, *args: Any) -> Any:
    """Run one phase without timing it: the default ``PhaseFn``.

    Example:
      >>> untimed("selection", max, 1, 2)
      2
    """
    del name
    return function(*args)
