"""Whether a layer is the last: what it returns is what the model returns."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from crest_jax import _checks
from crest_jax.types import Array

# Operations that change no value, or its number type alone.
LAYOUT = {"convert_element_type", "copy", "copy_p", "reshape", "squeeze", "expand_dims"}
LAYOUT |= {"sharding_constraint", "optimization_barrier"}
# Operations that are programs of their own.
CALLS = {"jit", "pjit", "checkpoint", "remat", "remat2", "closed_call", "core_call"}
CALLS |= {"custom_jvp_call", "custom_vjp_call"}

Run = Callable[..., tuple[Array, Array, Array]]  # (...) -> (features, output of the layer, logits)


def last_layer(run: Run, name: str, others: list[str], *args: Any) -> tuple[Array, Array]:
    """Return the features and logits of ``run(*args)``, if the layer's output is the logits.

    That is read off the program while it is traced, so it costs nothing when a compiled one runs.

    Args:
      run: returns the features, the output of the layer, and the logits.
      name: the layer.
      others: the layers that could be meant; filled while ``run`` runs.
      *args: its arguments.

    Raises:
      ValueError: when the model returns something else than the layer.
    """
    features, output, logits = run(*args)
    named = ", ".join(dict.fromkeys(others)) or "none"
    remedy = (
        f"name the layer that returns the logits (linear ones, in call order: {named}), or give a "
        "method that returns (features, logits) by method=."
    )
    _checks.require(
        jnp.shape(output) == jnp.shape(logits),
        f"layer {name!r} returns shape {jnp.shape(output)} but the model {jnp.shape(logits)}, and the "
        f"last layer must return what the model does; {remedy}",
    )
    program = jax.make_jaxpr(lambda *args: run(*args)[1:])(*args).jaxpr
    ends = [_origin(program, variable) for variable in program.outvars]
    _checks.require(
        ends[0] == ends[1],
        f"layer {name!r} returns other values than the model but the last layer must return what the "
        f"model does; {remedy}",
    )
    return features, logits


def contracted(inputs: Any, axes: int | Sequence[int]) -> Any:
    """Return what a general linear layer reads, the axes that it sums over as one, which is the last.

    >>> contracted(jnp.ones((2, 3, 4, 5)), (-2, 1)).shape
    (2, 5, 12)
    """
    ndim = jnp.ndim(inputs)
    last = [axis % ndim for axis in ((axes,) if isinstance(axes, int) else axes)]
    if last == [ndim - 1]:
        return inputs
    first = [axis for axis in range(ndim) if axis not in last]
    shape = [inputs.shape[axis] for axis in first]
    return jnp.transpose(inputs, (*first, *last)).reshape(*shape, -1)


def _origin(program: Any, variable: Any) -> tuple[Any, ...]:
    """Return where a value is computed: the operations that hold it, outermost first, and its name."""
    made = {out: equation for equation in program.eqns for out in equation.outvars}
    while not isinstance(variable, Literal) and variable in made:
        equation = made[variable]
        position = equation.outvars.index(variable)
        if equation.primitive.name in LAYOUT:
            variable = equation.invars[position]
            continue
        found = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name not in CALLS or found is None:
            break
        inner = getattr(found, "jaxpr", found)
        path = _origin(inner, inner.outvars[position])
        if len(path) > 1 or path[0] not in map(id, inner.invars):
            return (id(equation), *path)
        variable = equation.invars[[id(x) for x in inner.invars].index(path[0])]
    return (id(variable),)
