"""Flax NNX models as pure functions, beside the live model that an optimizer changes in place."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crest_jax import _checks
from crest_jax.flax.calls import Call, described, read_call, switched
from crest_jax.flax.linen_last_layer import check_one_way
from crest_jax.flax.nnx_last_layer import NNXFeatures, layer_at, paths_of_linear
from crest_jax.types import Array, FeaturesFn, ModelState, Params, PyTree

Path = tuple[str | int, ...]
PASSING = (nnx.RngState, nnx.Intermediate)  # variables that are no part of a model's state here


def from_nnx(model: nnx.Module, *, wrt: Any = nnx.Param, keyword_inputs: bool = False) -> "NNXApply":
    """Return an NNX model as a pure function, which also reads the live model: `NNXApply.view`.

    Train the model as always, with `nnx.Optimizer` and `nnx.jit`; ``view(model)`` gives its parameters
    and state as they are now in the form that the function takes::

        apply_fn = from_nnx(model)
        state = selector.init(key, *apply_fn.view(model))
        for _ in range(steps):
            state, event = selector.refresh(state, *apply_fn.view(model))
            state, batch = selector.next_batch(state)
            losses = train_step(model, optimizer, batch)
            state = selector.observe(state, batch, losses)

    Every call works on a copy of the model as it was built, switched by ``train()`` or ``eval()`` and
    by the arguments of its ``__call__`` that are named ``train`` or ``training``, ``deterministic`` or
    ``use_running_average`` (which mean the opposite); the model itself is left as it is. In training
    every random stream is drawn afresh from ``rng``, also that of an argument ``rngs``. Inputs are any
    pytree, passed as one argument. Weights [b], if the function is called with any, go to a training
    model that takes ``weights`` (see `NNXWeightedBatchNorm`).

    ``params`` and ``model_state`` may also be what ``nnx.split(model, nnx.Param, ...)`` returns, or
    ``nnx.to_pure_dict`` of it; random streams in them are not read. A state comes back in the form in
    which it was given.

    Args:
        model: maps inputs, arrays [b, ...], to logits [b, c] when called.
        wrt: which variables are the parameters, as for `nnx.Optimizer`.
        keyword_inputs: call the model with the entries of the inputs, a dict, as arguments by name.

    Returns:
        The function ``(params, model_state, inputs, *, train, rng, weights=None)``, which returns the
        logits and the new state. On a call it raises ValueError if params or state are not those of
        the model, or if ``train=True`` comes with ``rng=None`` and the model holds a random stream.

    Raises:
        ValueError: if it is no NNX model, or it has no such parameters, or cannot be called with
            inputs.

    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden = nnx.Linear(5, 4, rngs=rngs)
    ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
    ...         self.dropout = nnx.Dropout(0.5, rngs=rngs)
    ...         self.head = nnx.Linear(4, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.head(self.dropout(self.norm(self.hidden(x))))
    >>> model, inputs = Model(nnx.Rngs(0)), jnp.ones((2, 5))
    >>> apply_fn = from_nnx(model)
    >>> params, state = apply_fn.view(model)
    >>> logits, state = apply_fn(params, state, inputs, train=True, rng=jax.random.key(1))
    >>> logits.shape, list(state)
    ((2, 3), ['norm'])
    """
    _checks.require(
        isinstance(model, nnx.Module),
        f"model is {described(model)} but must be an NNX model; pass an instance, such as "
        "Model(rngs=nnx.Rngs(0)) (from_linen takes modules of Linen).",
    )
    name = type(model).__name__
    _checks.require(
        callable(model), f"{name} has no __call__ but must map inputs to logits; define it."
    )
    call = read_call(f"{name}.__call__", model, keyword_inputs)
    # A copy in one mode and without sown values, which shares the arrays only.
    copy = nnx.merge(nnx.graphdef(model), nnx.to_pure_dict(nnx.state(model)))
    copy.train()
    nnx.pop(copy, nnx.Intermediate)
    graph, *states = nnx.split(copy, nnx.RngState, wrt, ...)
    streams, params, rest = states
    _checks.require(
        bool(jax.tree.leaves(params)),
        f"{name} has no variables for wrt={_checks.brief(wrt)} but must have parameters; name the type "
        "of those that are trained.",
    )
    return NNXApply(
        graph,
        tuple(
            (path, nnx_value(leaf).shape, isinstance(leaf, nnx.RngKey)) for path, leaf in _flat(streams)
        ),
        tuple(path for path, _ in _flat(params)),
        tuple(path for path, _ in _flat(rest)),
        call,
    )


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
            isinstance(layer_at(model, layer), nnx.Module),
            f"layer is {layer!r} but must be the path of a layer of {type(model).__name__}; choose "
            f"from {', '.join(paths_of_linear(model)) or 'none'}.",
        )
    if method is not None:
        _checks.require(
            callable(getattr(model, method, None)),
            f"{type(model).__name__} has no method {method!r} but that is to be called; define it, or "
            "name another.",
        )
    return NNXFeatures(apply_fn, layer, method)


# A value, so that what is compiled for equal models is shared.
@dataclasses.dataclass(frozen=True)
class NNXApply:
    """An NNX model as a pure function: ``apply_fn(params, model_state, inputs, *, train, rng)``.

    Made by `from_nnx`, which says how it is called.

    Attributes:
      graph: the model without its values.
      streams: path and shape of every variable of a random stream, and whether it is a key.
      param_paths: paths of the parameters.
      state_paths: paths of the other variables.
      call: how the model is called.
    """

    graph: Any
    streams: tuple[tuple[Path, tuple[int, ...], bool], ...]
    param_paths: tuple[Path, ...]
    state_paths: tuple[Path, ...]
    call: Call

    @property
    def features_fn(self) -> FeaturesFn:
        """What the last linear layer reads, beside the logits; see `nnx_features`."""
        return NNXFeatures(self, None, None)

    def view(self, model: nnx.Module) -> tuple[Params, ModelState]:
        """Return the parameters and the state of a live model as they are now, without copying them.

        Both are nested dicts of arrays, without random streams and sown values: later steps of an
        optimizer change the model, not them. A train step that donates the model's buffers deletes
        them, so read them again after it; selectors copy what they keep. ``nnx.update(model, params)``
        writes parameters back.

        Args:
          model: the model that `from_nnx` was given, or one that was built alike.

        Raises:
          ValueError: when its variables are others than those.

        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> params, model_state = from_nnx(model).view(model)
        >>> sorted(params), model_state
        (['bias', 'kernel'], {})
        """
        _checks.require(
            isinstance(model, nnx.Module),
            f"view was given a model {described(model)} but needs the live NNX model; pass the one "
            "that from_nnx was given.",
        )
        found = dict(_flat(nnx.state(model)))
        kept = {path for path, leaf in found.items() if not isinstance(leaf, PASSING)}
        strange = kept.symmetric_difference((*self.param_paths, *self.state_paths))
        _checks.require(
            not strange,
            f"the model differs from the one that from_nnx was given in {_names(strange)} but must "
            "have the same variables; call from_nnx again after a change of its layers.",
        )
        parts = self.param_paths, self.state_paths
        params, state = (_nested((path, nnx_value(found[path])) for path in part) for part in parts)
        return params, state

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        inputs: PyTree,
        *,
        train: bool,
        rng: Array | None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        """Return the logits [b, c] and the model state; see `from_nnx`."""
        random = bool(self.streams) or "rngs" in self.call.names
        _checks.require(
            not (train and random and rng is None),
            f"rng is None but {self.call.name} draws random numbers in training; pass a key.",
        )
        copy = self.merge(params, model_state, rng)
        copy.train() if train else copy.eval()
        args, named = self.call.split(inputs)
        named |= switched(self.call.switches, train) | self.call.weighted(weights if train else None)
        if "rngs" in self.call.names:
            named["rngs"] = nnx.Rngs(_key(rng, len(self.streams)))
        logits = copy(*args, **named)
        if not train:
            return logits, model_state
        after = dict(_flat(nnx.state(copy)))
        new = {_spelled(path): nnx_value(after[path]) for path in self.state_paths}
        return logits, _filled(model_state, new)

    def merge(self, params: Params, model_state: ModelState, rng: Array | None) -> Any:
        """Return a copy of the model with these values, and random streams from a key.

        Raises:
          ValueError: when the values are not those of the model.
        """
        streams = [path for path, _, _ in self.streams]
        known = {_spelled(path): path for path in (*self.param_paths, *self.state_paths, *streams)}
        remedy = "pass apply_fn.view(model), or the states of nnx.split(model, nnx.Param, ...)"
        values: dict[Path, Any] = {}
        parts = ("params", params, self.param_paths), ("model_state", model_state, self.state_paths)
        for what, tree, paths in parts:
            found = {
                path: nnx_value(leaf)
                for path, leaf in _entries(tree, known)
                if path not in streams and not isinstance(leaf, PASSING)
            }
            missing, strange = set(paths) - set(found), set(found) - set(paths)
            _checks.require(
                not missing, f"{what} lack {_names(missing)} but {self.call.name} reads it; {remedy}."
            )
            _checks.require(
                not strange,
                f"{what} hold {_names(strange)} but {self.call.name} has no such {what}; {remedy}.",
            )
            values |= found
        for position, (path, shape, is_key) in enumerate(self.streams):
            values[path] = _key(rng, position, shape) if is_key else jnp.zeros(shape, jnp.uint32)
        return nnx.merge(self.graph, _nested(values.items()))


def nnx_value(leaf: Any) -> Any:
    """Return the value of a variable, or what is none as it is.

    >>> nnx_value(nnx.Param(1.0)), nnx_value(2.0)
    (1.0, 2.0)
    """
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _key(rng: Array | None, position: int, shape: tuple[int, ...] = ()) -> Array:
    """Return the keys of one random stream; evaluation draws the same ones always."""
    rng = jax.random.key(0) if rng is None else _checks.prng_key("rng", rng)
    return jax.random.split(jax.random.fold_in(rng, position), shape)


def _names(paths: Any) -> str:
    names = sorted("/".join(map(str, path)) for path in paths)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(state: Any, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the leaf, a variable or an array, of all entries of an ``nnx.State``."""
    for name, value in state.items():
        if isinstance(value, nnx.State):
            yield from _flat(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _nested(values: Any) -> dict[Any, Any]:
    """Return nested dicts of values by path."""
    result: dict[Any, Any] = {}
    for path, value in values:
        inner = result
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return result


def _entries(tree: Any, known: dict[Path, Path], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the leaf of all entries of nested mappings, whole at a known path."""
    path = known.get(_spelled(prefix))
    if path is None and isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _entries(value, known, (*prefix, name))
    else:
        yield path or prefix, tree


def _spelled(path: Path) -> Path:
    """A path with places in lists as strings, as files of JSON and MessagePack have them."""
    return tuple(map(str, path))


def _filled(tree: Any, values: dict[Path, Any], prefix: Path = ()) -> Any:
    """Return nested mappings of the same kind with new values; what has none stays."""
    if _spelled(prefix) in values:
        new = values[_spelled(prefix)]
        return tree.replace(new) if isinstance(tree, nnx.Variable) else new
    if isinstance(tree, Mapping):
        kind: Any = type(tree)  # inside a State there are plain dicts, which it shows as States
        inner = tree.raw_mapping if isinstance(tree, nnx.State) else tree
        return kind({name: _filled(value, values, (*prefix, name)) for name, value in inner.items()})
    return tree
