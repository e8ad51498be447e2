"""How a Linen module is called and switched between training and evaluation."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from flax import errors
from flax import linen as nn

from crest_jax import _checks
from crest_jax.flax.calls import SWITCHES, Call, described, read_call, switched
from crest_jax.types import Array, ModelState, PyTree

DECLARE = "declare train (or deterministic, use_running_average) as its argument or field"
MISSING = (
    errors.ModifyScopeVariableError,
    errors.ScopeCollectionNotFound,
    errors.ScopeVariableNotFoundError,
)


# Values, so that what is compiled for equal modules is shared.
@dataclasses.dataclass(frozen=True)
class Switching:
    """A module that can be switched between training and evaluation.

    Attributes:
      module: the module as it was given.
      call: the method that is called.
      method: its name.
    """

    module: nn.Module
    call: Call
    method: str

    def apply(
        self,
        variables: PyTree,
        inputs: PyTree,
        *,
        train: bool,
        weights: Array | None = None,
        **more: Any,
    ) -> Any:
        """Apply the module in a mode; ``more`` goes to ``Module.apply``."""
        module = _in_mode(self.module, self.call, train)
        args, named = self.call.split(inputs)
        named |= switched(self.call.switches, train) | self.call.weighted(weights if train else None)
        return module.apply(variables, *args, **named, method=self.method, **more)


def switching(module: nn.Module, method: str, keyword_inputs: bool) -> Switching:
    """Find out how a module is switched between training and evaluation, and called.

    Raises:
      ValueError: when that cannot be known.
    """
    _checks.require(
        isinstance(module, nn.Module),
        f"module is {described(module)} but must be a Linen module; pass an instance, such as Model() "
        "(from_nnx takes those of NNX).",
    )
    _checks.require(
        module.scope is None,
        f"module is a {type(module).__name__} that is bound to variables but must be free of them; "
        "pass the module that bind was called on.",
    )
    name, function = f"{type(module).__name__}.{method}", getattr(module, method, None)
    _checks.require(
        callable(function),
        f"{type(module).__name__} has no method {method!r} but that is to be called; define it, or "
        "name another.",
    )
    assert callable(function)
    if isinstance(module, nn.Sequential) and method == "__call__":
        call = _first_layer(module, keyword_inputs)
    else:
        call = read_call(name, function, keyword_inputs)
        _checks.require(
            not call.open_ended or bool(call.switches or _fields(module)),
            f"{name} takes **kwargs but names no switch between training and evaluation; {DECLARE}.",
        )
    for field in call.switches:
        _checks.require(
            getattr(module, field, None) is None,
            f"{type(module).__name__} has {field}={getattr(module, field, None)!r} as a field and "
            f"{field} as an argument but only one of the two can count; leave the field None.",
        )
    return Switching(module, call, method)


def _first_layer(module: nn.Sequential, keyword_inputs: bool) -> Call:
    """Check the layers of a Sequential, and return how its first is called."""
    calls = []
    for position, layer in enumerate(module.layers):
        if isinstance(layer, nn.Sequential):
            calls.append(_first_layer(layer, keyword_inputs and not position))
        elif isinstance(layer, nn.Module):
            name = f"{type(layer).__name__}.__call__"
            call = read_call(name, layer, keyword_inputs and not position)
            known = [switch for switch in call.switches if switch not in _fields(layer)]
            _checks.require(
                not position or not known,
                f"layer {position} of a Sequential, {type(layer).__name__}, takes {', '.join(known)} "
                "as an argument but only the first layer is given any; make it a field of that layer.",
            )
            kept = tuple(other for other in call.names if other in known or other not in SWITCHES)
            calls.append(dataclasses.replace(call, names=kept))
        else:
            calls.append(Call("the first layer", (), (), True, keyword_inputs and not position))
    _checks.require(
        bool(calls), "module is a Sequential of 0 layers but must have one at least; give it layers."
    )
    return calls[0]


def _fields(module: nn.Module) -> list[str]:
    """The fields of a module that are switches."""
    return [field.name for field in dataclasses.fields(module) if field.name in SWITCHES]


def _in_mode(module: nn.Module, call: Call, train: bool) -> nn.Module:
    """Return a module whose fields say whether it trains; what arguments say is left open."""
    if isinstance(module, nn.Sequential):
        return _sequential_in_mode(module, train, {})
    fields = [field for field in _fields(module) if field not in call.switches]
    return _clone(module, fields, train)


def _clone(module: nn.Module, fields: list[str], train: bool) -> nn.Module:
    """Return a module with these fields switched."""
    updates: dict[str, Any] = dict(switched(fields, train))
    return module.clone(**updates) if fields else module


def _sequential_in_mode(module: nn.Sequential, train: bool, known: dict[int, Any]) -> nn.Module:
    """Switch the layers of a Sequential that leave it open; one that occurs twice stays one."""
    layers = []
    for layer in module.layers:
        if id(layer) not in known:
            known[id(layer)] = layer
            if isinstance(layer, nn.Sequential):
                known[id(layer)] = _sequential_in_mode(layer, train, known)
            elif isinstance(layer, nn.Module):
                # Where None means open, a value means that the layer is not to be switched.
                default = {field.name: field.default for field in dataclasses.fields(layer)}
                fields = [
                    name
                    for name in _fields(layer)
                    if getattr(layer, name) is None or default[name] is not None
                ]
                known[id(layer)] = _clone(layer, fields, train)
        layers.append(known[id(layer)])
    return module.clone(layers=layers)


@contextlib.contextmanager
def sentences(
    model: Switching, model_state: ModelState, *, train: bool, rng: Array | None
) -> Iterator[None]:
    """Say in a sentence what Flax refuses about random streams and state."""
    name = model.call.name
    try:
        yield
    except errors.InvalidRngError as error:
        if not train:
            message = f"{name} draws random numbers with train=False but must not; {DECLARE}."
        elif rng is None:
            message = f"rng is None but {name} draws random numbers in training; pass a key."
        else:
            message = (
                f"{name} reads a random stream that rngs does not name ({_checks.brief(str(error))}) "
                "but all must be named; add it to rngs of from_linen."
            )
        raise ValueError(message) from None
    except MISSING as error:
        detail = str(error).partition(" (http")[0].rstrip(".")
        if isinstance(error, errors.ModifyScopeVariableError) and not train:
            message = f"{name} changes its state with train=False ({detail}) but must not; {DECLARE}."
        else:
            message = (
                f"model_state holds {', '.join(model_state) or 'nothing'} but {name} needs more "
                f"({detail}); pass all that module.init returned, without params."
            )
        raise ValueError(message) from None
