"""What the last layer of a Linen module reads, beside its logits."""

import dataclasses
from typing import Any

from flax import linen as nn

from crest_jax import _checks
from crest_jax.flax.last_layer import contracted, last_layer
from crest_jax.flax.linen_calls import Switching, sentences, switching
from crest_jax.types import Array, FeaturesFn, ModelState, Params, PyTree

COLLECTION = "crest_last_layer"


def linen_features(
    module: nn.Module,
    layer: str | None = None,
    *,
    method: str | None = None,
    keyword_inputs: bool = False,
) -> FeaturesFn:
    """Return what a Linen module's last layer reads, beside its logits, in evaluation mode.

    The result maps ``(params, model_state, inputs [b, ...])`` to
    ``(features [b, ..., d], logits [b, ..., c])``; the gradient of the loss with respect to the last
    layer is the outer product of the features and the gradient with respect to the logits, which
    `crest_jax.last_layer_gradients` makes embeddings of. What the layer returns must be what the module
    returns; that is checked when the function is traced.

    Args:
        module: the module, as for `from_linen`.
        layer: path of the last layer among the module's parameters, such as ``"Dense_1"`` or
            ``"decoder/out"``; it must be linear. None takes the last ``Dense``, ``DenseGeneral`` or
            ``Embed.attend`` that is called.
        method: name of a method ``(self, inputs, train) -> (features, logits)`` of yours in place of a
            layer.
        keyword_inputs: as for `from_linen`.

    Raises:
        ValueError: as `from_linen`; if both a layer and a method are named; on a call, if no such layer
            is called, or it is not the last.

    >>> import jax, jax.numpy as jnp
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))
    >>> model, inputs = Model(), jnp.ones((2, 5))
    >>> params = model.init(jax.random.key(0), inputs)["params"]
    >>> features, logits = linen_features(model)(params, {}, inputs)
    >>> features.shape, logits.shape
    ((2, 4), (2, 3))
    """
    check_one_way(layer, method)
    switched = switching(module, method or "__call__", keyword_inputs)
    return ByLayer(switched, layer) if method is None else _ByMethod(switched)


def check_one_way(layer: Any, method: Any) -> None:
    """Require a layer or a method, not both.

    Raises:
      ValueError: when both are named, or one by something else than a string.
    """
    _checks.require(
        layer is None or method is None,
        f"layer is {_checks.brief(layer)} and method {_checks.brief(method)} but only one of them can "
        "say where the features are; leave one out.",
    )
    for what, value in (("layer", layer), ("method", method)):
        _checks.require(
            value is None or isinstance(value, str),
            f"{what} is {_checks.brief(value)} but must be a name or None; pass a string, with / "
            "between the parts of a path.",
        )


@dataclasses.dataclass(frozen=True)
class _ByMethod:
    model: Switching

    def __call__(self, params: Params, model_state: ModelState, inputs: PyTree) -> tuple[Array, Array]:
        variables = {"params": params, **model_state}
        with sentences(self.model, model_state, train=False, rng=None):
            result: Any = self.model.apply(variables, inputs, train=False)
        name = self.model.call.name
        _checks.require(
            isinstance(result, tuple) and len(result) == 2,
            f"{name} returned {_checks.brief(result)} but must return a pair; return (features, "
            "logits).",
        )
        return result


@dataclasses.dataclass(frozen=True)
class ByLayer:
    """Features of a layer.

    Attributes:
      model: the module.
      layer: path of the layer; None: the last linear one.
    """

    model: Switching
    layer: str | None

    def __call__(self, params: Params, model_state: ModelState, inputs: PyTree) -> tuple[Array, Array]:
        """Return features and logits, in evaluation mode."""
        linear: list[str] = []  # paths in the order of the calls

        def run(params: Params, model_state: ModelState, inputs: PyTree) -> tuple[Array, Array, Array]:
            linear.clear()
            variables = {"params": params, **model_state}
            with (
                nn.intercept_methods(self._keep(linear)),
                sentences(self.model, model_state, train=False, rng=None),
            ):
                # Sown values get out of lifted transformations, too.
                logits, kept = self.model.apply(variables, inputs, train=False, mutable=[COLLECTION])
            found = kept.get(COLLECTION, {})
            path = self.layer if self.layer is not None else (linear[-1] if linear else "")
            for part in filter(None, path.split("/")):
                found = found.get(part, {})
            _checks.require(
                "output" in found,
                f"layer is {self.layer!r} but {self.model.call.name} calls no such layer with an array "
                f"(linear ones, in call order: {', '.join(dict.fromkeys(linear)) or 'none'}); name one "
                "of its layers, or a method by method=.",
            )
            return found["input"], found["output"], logits

        last = self.layer if self.layer is not None else "None"
        return last_layer(run, last, linear, params, model_state, inputs)

    def _keep(self, linear: list[str]) -> Any:
        """Return an interceptor that sows what goes into and comes out of the layers in question."""

        def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output, module = call(*args, **kwargs), context.module
            path, name = "/".join(module.path or ()), context.method_name
            is_dense = isinstance(module, (nn.Dense, nn.DenseGeneral)) and name == "__call__"
            is_linear = is_dense or (isinstance(module, nn.Embed) and name == "attend")
            if is_linear:
                linear.append(path)
            wanted = is_linear if self.layer is None else path == self.layer
            values = [*args, *kwargs.values()]
            if wanted and name in ("__call__", "attend") and values and _is_array(output):
                read = values[0]
                if isinstance(module, nn.DenseGeneral):
                    read = contracted(read, module.axis)
                for what, value in (("input", read), ("output", output)):
                    module.sow(COLLECTION, what, value, reduce_fn=_newer, init_fn=_nothing)
            return output

        return keep


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _newer(old: Any, new: Any) -> Any:
    del old
    return new


def _nothing() -> None:
    return None
