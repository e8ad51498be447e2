"""What the last layer of an NNX model reads, beside its logits."""

import dataclasses
import types
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from flax import nnx

from crest_jax import _checks
from crest_jax.flax.calls import switched
from crest_jax.flax.last_layer import last_layer
from crest_jax.flax.linen_last_layer import check_one_way
from crest_jax.flax.nnx import NNXApply, from_nnx
from crest_jax.types import Array, FeaturesFn, ModelState, Params, PyTree

LINEAR = (nnx.Linear, nnx.LinearGeneral)


def nnx_features(
    model: nnx.Module,
    layer: str | None = None,
    *,
    method: str | None = None,
    wrt: Any = nnx.Param,
    keyword_inputs: bool = False,
) -> FeaturesFn:
    """Return what an NNX model's last layer reads, beside its logits, in evaluation mode.

    The result maps ``(params, model_state, inputs [b, ...])``, as `from_nnx` takes them, to
    ``(features [b, ..., d], logits [b, ..., c])``; the gradient of the loss with respect to the last
    layer is the outer product of the features and the gradient with respect to the logits, which
    `crest_jax.last_layer_gradients` makes embeddings of. What the layer returns must be what the model
    returns; that is checked when the function is traced.

    Args:
        model: the model, as for `from_nnx`; it is left as it is.
        layer: path of the last layer in the model, such as ``"head"`` or ``"blocks/1/out"``; it must be
            linear. None takes the last ``Linear``, ``LinearGeneral`` or ``Embed.attend`` that is
            called.
        method: name of a method ``(self, inputs) -> (features, logits)`` of yours in place of a layer.
        wrt: as for `from_nnx`.
        keyword_inputs: as for `from_nnx`.

    Raises:
        ValueError: as `from_nnx`; if both a layer and a method are named, or the model has none such;
            on a call, if the layer is not called, or is not the last.

    >>> import jax.numpy as jnp
    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden = nnx.Linear(5, 4, rngs=rngs)
    ...         self.head = nnx.Linear(4, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.head(nnx.relu(self.hidden(x)))
    >>> model = Model(nnx.Rngs(0))
    >>> params, state = from_nnx(model).view(model)
    >>> features, logits = nnx_features(model)(params, state, jnp.ones((2, 5)))
    >>> features.shape, logits.shape
    ((2, 4), (2, 3))
    """
    check_one_way(layer, method)
    apply_fn = from_nnx(model, wrt=wrt, keyword_inputs=keyword_inputs)
    if layer is not None:
        _checks.require(
            isinstance(_at(model, layer), nnx.Module),
            f"layer is {layer!r} but must be the path of a layer of {type(model).__name__}; choose "
            f"from {', '.join(_paths(model)) or 'none'}.",
        )
    if method is not None:
        _checks.require(
            callable(getattr(model, method, None)),
            f"{type(model).__name__} has no method {method!r} but that is to be called; define it, or "
            "name another.",
        )
    return _NNXFeatures(apply_fn, layer, method)


def _paths(model: nnx.Module) -> list[str]:
    """The paths of all linear layers."""
    found = nnx.iter_modules(model)
    return ["/".join(map(str, path)) for path, module in found if isinstance(module, LINEAR)]


def _at(model: Any, path: str) -> Any:
    """Return what lies at a path of attributes, keys and places in lists, None where nothing does."""
    for part in path.split("/"):
        try:
            inside = isinstance(model, (list, tuple, nnx.List))
            model = model[int(part)] if inside else getattr(model, part, None) or model[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return model


@dataclasses.dataclass(frozen=True)
class _NNXFeatures:
    apply_fn: NNXApply
    layer: str | None
    method: str | None

    def __call__(self, params: Params, model_state: ModelState, inputs: PyTree) -> tuple[Array, Array]:
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
            wanted = None if self.layer is None else _at(copy, self.layer)
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
                f"of its linear layers ({', '.join(_paths(copy)) or 'none'}), or a method by method=.",
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
                calls.append((self, values[0], output))
            return output

        return call

    # An embedding looks tokens up when called, which is no linear layer; its transpose is one.
    names = ["attend"] if issubclass(kind, nnx.Embed) else ["__call__"]
    return types.new_class(
        kind.__name__, (kind,), exec_body=lambda own: own.update({name: noting(name) for name in names})
    )
