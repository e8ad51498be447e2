"""What the last layer of an NNX model reads, beside its logits."""

import dataclasses
import types
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from flax import nnx

from crest_jax import _checks
from crest_jax.flax.calls import switched
from crest_jax.flax.last_layer import contracted, last_layer
from crest_jax.types import Array, ModelState, Params, PyTree

LINEAR = (nnx.Linear, nnx.LinearGeneral)


def paths_of_linear(model: nnx.Module) -> list[str]:
    """The paths of all linear layers."""
    found = nnx.iter_modules(model)
    return ["/".join(map(str, path)) for path, module in found if isinstance(module, LINEAR)]


def layer_at(model: Any, path: str) -> Any:
    """Return what lies at a path of attributes, keys and places in lists, None where nothing does."""
    for part in path.split("/"):
        try:
            inside = isinstance(model, (list, tuple, nnx.List))
            model = model[int(part)] if inside else getattr(model, part, None) or model[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return model


@dataclasses.dataclass(frozen=True)
class NNXFeatures:
    """Features of a layer, or of a method.

    Attributes:
      apply_fn: the model, an ``NNXApply``.
      layer: path of the layer; None: the last linear one.
      method: name of the method; None: by layer.
    """

    apply_fn: Any
    layer: str | None
    method: str | None

    def __call__(self, params: Params, model_state: ModelState, inputs: PyTree) -> tuple[Array, Array]:
        """Return features and logits, in evaluation mode."""
        call = self.apply_fn.call
        args, named = call.split(inputs)

        def copied(params: Params, model_state: ModelState) -> Any:
            copy = self.apply_fn.merge(params, model_state, None)
            copy.eval()
            return copy

        if self.method is not None:
            result = getattr(copied(params, model_state), self.method)(*args, **named)
            _checks.require(
                isinstance(result, tuple) and len(result) == 2,
                f"{self.method} returned {_checks.brief(result)} but must return a pair; return "
                "(features, logits).",
            )
            return result
        linear: list[str] = []

        def run(
            params: Params, model_state: ModelState, args: Any, named: Any
        ) -> tuple[Array, Array, Array]:
            copy, calls = copied(params, model_state), list[tuple[Any, Array, Array]]()
            names = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(copy)}
            kinds = (*LINEAR, nnx.Embed)
            wanted = None if self.layer is None else layer_at(copy, self.layer)
            for _, module in nnx.iter_modules(copy):
                if module is wanted or isinstance(module, kinds):
                    _record(module)
            token = _CALLS.set(calls)
            try:
                logits = copy(*args, **named, **switched(call.switches, train=False))
            finally:
                _CALLS.reset(token)
            # Inside a transformation (nnx.remat) another copy is called, on values that end with it.
            calls = [noted for noted in calls if id(noted[0]) in names]
            linear[:] = [names[id(module)] for module, *_ in calls if isinstance(module, kinds)]
            calls = [noted for noted in calls if wanted is None or noted[0] is wanted]
            _checks.require(
                bool(calls),
                f"layer is {self.layer!r} but {call.name} calls no such layer with an array; name one "
                f"of its linear layers ({', '.join(paths_of_linear(copy)) or 'none'}), or a method by "
                "method=.",
            )
            return *calls[-1][1:], logits

        name = self.layer if self.layer is not None else "None"
        return last_layer(run, name, linear, params, model_state, args, named)


# Where recording layers note each call: the layer, what it reads, and what it returns.
_CALLS: ContextVar[list[tuple[Any, Array, Array]] | None] = ContextVar("calls", default=None)


def _record(layer: Any) -> None:
    """Make a layer of a copy note its calls."""
    kind: Any = type(layer)
    layer.__class__ = _recording(kind)


@lru_cache(maxsize=256)
def _recording(kind: Any) -> Any:
    """Return a class like ``kind`` whose instances note their calls."""

    def noting(name: str) -> Any:
        method = getattr(kind, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = method(self, *args, **kwargs)
            values, calls = [*args, *kwargs.values()], _CALLS.get()
            if calls is not None and values:
                read = values[0]
                if isinstance(self, nnx.LinearGeneral):
                    read = contracted(read, self.axis)
                calls.append((self, read, output))
            return output

        return call

    # An embedding looks tokens up when called, which is no linear layer; its transpose is one.
    names = ["attend"] if issubclass(kind, nnx.Embed) else ["__call__"]
    return types.new_class(
        kind.__name__, (kind,), exec_body=lambda own: own.update({name: noting(name) for name in names})
    )
