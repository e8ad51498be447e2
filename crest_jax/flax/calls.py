"""How a model's method is called: its switch between training and evaluation, inputs and weights."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from crest_jax import _checks
from crest_jax.types import Array, PyTree

# The names that switches have, and whether training sets them.
SWITCHES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}
GIVEN = (*SWITCHES, "weights", "rngs")  # arguments that an adapter fills
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def switched(names: Iterable[str], train: bool) -> dict[str, bool]:
    """Return the values of switches in training or in evaluation.

    Example:
      >>> switched(["deterministic"], train=True)
      {'deterministic': False}
    """
    return {name: train is SWITCHES[name] for name in names}


def described(model: Any) -> str:
    """Say what was given in place of a model, without printing all its values.

    Example:
      >>> described(int), described(3)
      ('the class int', 'of the type int')
    """
    if isinstance(model, type):
        return f"the class {model.__name__}"
    return f"of the type {type(model).__name__}"


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a method.

    Attributes:
      name: the method as sentences call it.
      names: arguments that can be given by name.
      required: those of them without a default, but the ones that an adapter fills.
      open_ended: whether it takes any others too (``**kwargs``).
      keyword_inputs: whether the inputs are a dict of arguments.
    """

    name: str
    names: tuple[str, ...]
    required: tuple[str, ...]
    open_ended: bool
    keyword_inputs: bool

    @property
    def switches(self) -> list[str]:
        """The arguments that switch between training and evaluation."""
        return [name for name in self.names if name in SWITCHES]

    def split(self, inputs: PyTree) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs as positional arguments and arguments by name.

        Raises:
          ValueError: when inputs that must be a dict of arguments are not.
        """
        if not self.keyword_inputs:
            return (inputs,), {}
        _checks.require(
            isinstance(inputs, dict) and all(isinstance(name, str) for name in inputs),
            f"inputs are {_checks.brief(inputs)} but with keyword_inputs=True must be a dict of "
            f"arguments of {self.name}; pass one, or leave keyword_inputs out.",
        )
        for name in inputs:
            _checks.require(
                name not in GIVEN and (self.open_ended or name in self.names),
                f"inputs hold {name!r} but {self.name} takes as inputs only "
                f"{self._inputs()}; rename or remove it.",
            )
        missing = [name for name in self.required if name not in inputs]
        _checks.require(
            not missing,
            f"inputs hold {', '.join(inputs) or 'nothing'} but {self.name} also needs "
            f"{', '.join(missing)}; add it to the inputs.",
        )
        return (), dict(inputs)

    def _inputs(self) -> str:
        return ", ".join(name for name in self.names if name not in GIVEN) or "none"

    def weighted(self, weights: Array | None) -> dict[str, Array]:
        """Return weights [b] as an argument, nothing for None.

        Raises:
          ValueError: when the method takes none.
        """
        if weights is None:
            return {}
        _checks.require(
            self.open_ended or "weights" in self.names,
            f"weights were given but {self.name} takes none; declare weights=None there and hand them "
            "to its WeightedBatchNorm, or call without weights.",
        )
        return {"weights": weights}


def read_call(name: str, method: Callable[..., Any], keyword_inputs: bool) -> Call:
    """Read the arguments of a bound method.

    Raises:
      ValueError: when they cannot be filled from inputs alone.

    Example:
      >>> read_call("f", lambda x, train: x, False).switches
      ['train']
    """
    parameters = list(inspect.signature(method).parameters.values())
    kinds = {parameter.kind for parameter in parameters}
    names = tuple(p.name for p in parameters if p.kind in NAMED)
    required = [
        p.name for p in parameters if p.kind in NAMED and p.default is p.empty and p.name not in GIVEN
    ]
    if not keyword_inputs and inspect.Parameter.VAR_POSITIONAL not in kinds:
        first = parameters[0] if parameters else None
        _checks.require(
            first is not None
            and first.kind in (NAMED[0], first.POSITIONAL_ONLY)
            and first.name not in GIVEN,
            f"{name} takes ({', '.join(names)}) but its first argument must be the inputs; declare it "
            f"as {name.rpartition('.')[2]}(self, inputs, train).",
        )
        assert first is not None
        more = [other for other in required if other != first.name]
        _checks.require(
            not more,
            f"{name} also needs {', '.join(more)} but is called with one argument, the inputs; give it "
            "a default, or pass all as a dict with keyword_inputs=True.",
        )
    return Call(name, names, tuple(required), inspect.Parameter.VAR_KEYWORD in kinds, keyword_inputs)
