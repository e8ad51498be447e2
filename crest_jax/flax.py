"""Flax models as `crest_jax.types.ApplyFn`; no other module of the library imports flax.

No adapter is needed for a model that is already a pure function: anything that can be called as
``apply_fn(params, model_state, inputs, *, train, rng) -> (logits, model_state)`` will do.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from crest_jax.types import ApplyFn, Array, FeaturesFn, ModelState, Params, PyTree


def from_linen(module: nn.Module, *, rngs: Sequence[str] = ("dropout",)) -> ApplyFn:
    """Return a Linen module as a pure function.

    The module's method must be ``__call__(self, inputs, train)``. Of the variables that
    ``module.init`` returns, ``params`` is the collection of that name and ``model_state`` the dict
    of all others (``{"batch_stats": ...}``, or ``{}``). With ``train=True`` the collections of
    ``model_state`` are mutable and their new values are returned; with ``train=False`` the same
    object comes back. Weights [b], if the function is called with any, go to a training module that
    takes ``weights`` (see `WeightedBatchNorm`).

    Args:
        module: maps inputs [b, ...] to logits [b, c].
        rngs: names of the random streams that the module reads in training. Each gets a key of its
            own, split from ``rng``; with ``rng=None`` it gets none.

    Raises:
        TypeError: if the module's ``__call__`` takes no ``train``.

    >>> import jax.numpy as jnp
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
    ...         return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))
    >>> model, inputs = Model(), jnp.ones((2, 5))
    >>> variables = model.init(jax.random.key(0), inputs, train=False)
    >>> params = variables.pop("params")
    >>> apply_fn = from_linen(model)
    >>> logits, state = apply_fn(params, variables, inputs, train=True, rng=jax.random.key(1))
    >>> logits.shape, list(state)
    ((2, 3), ['batch_stats'])
    """
    _check_train_argument(module, "__call__")
    return _Linen(module, tuple(rngs))


# Values, so that what is compiled for equal modules is shared.
@dataclasses.dataclass(frozen=True)
class _Linen:
    module: nn.Module
    rngs: tuple[str, ...]

    def __call__(
        self,
        params: Params,
        model_state: ModelState,
        inputs: Array,
        *,
        train: bool,
        rng: Array | None,
        weights: Array | None = None,
    ) -> tuple[Array, ModelState]:
        variables = {"params": params, **model_state}
        more: dict[str, Any] = {} if weights is None else {"weights": weights}
        if not train:
            logits: Any = self.module.apply(variables, inputs, train=False)
            return logits, model_state
        keys = {}
        if rng is not None:
            keys = dict(zip(self.rngs, jax.random.split(rng, len(self.rngs)), strict=True))
        result: Any = self.module.apply(
            variables, inputs, train=True, rngs=keys, mutable=list(model_state), **more
        )
        return result


class WeightedBatchNorm(nn.Module):
    """Batch normalisation whose statistics count each example by its weight.

    A weighted mini-batch stands for more examples than it holds. Plain BatchNorm ignores the weights,
    so its mean and variance are those of the wrong examples, in training and, through the running
    statistics, in evaluation. With weights of 1, or none, this is ``flax.linen.BatchNorm``, with the
    same parameters and statistics under the same names (Ioffe and Szegedy, ICML 2015, Algorithm 1,
    with ``sum(w x) / sum(w)`` for the means).

    ``momentum`` is the share of the old value in the running statistics, ``dtype`` that of the result;
    statistics are float32. The parameters are ``scale`` and ``bias`` [c], the collection
    ``batch_stats`` holds ``mean`` and ``var`` [c].

    >>> norm = WeightedBatchNorm()
    >>> x, weights = jnp.array([[0.0], [4.0]]), jnp.array([3.0, 1.0])
    >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
    >>> y, _ = norm.apply(
    ...     variables, x, use_running_average=False, weights=weights, mutable=["batch_stats"]
    ... )
    >>> bool(abs(3 * y[0, 0] + y[1, 0]) < 1e-5)
    True
    """

    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool, weights: Array | None = None) -> Array:
        """Normalise ``x`` [b, ..., c] over all axes but the last; ``weights`` [b] are positive."""
        shape, dtype = x.shape[-1:], self.dtype or x.dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if use_running_average:
            centre, spread = mean.value, var.value
        else:
            centre, spread = _weighted_moments(x.astype(jnp.float32), weights)
            if not self.is_initializing():
                old = self.momentum
                mean.value = old * mean.value + (1 - old) * centre
                var.value = old * var.value + (1 - old) * spread
        wide = (None,) * (x.ndim - 1)
        factor = jax.lax.rsqrt(spread + self.epsilon) * scale
        return ((x - centre[wide]) * factor[wide] + bias[wide]).astype(dtype)


def _weighted_moments(x: Array, weights: Array | None) -> tuple[Array, Array]:
    """Mean and variance [c] of x [b, ..., c], float32, each example counted by its weight [b]."""
    inner = tuple(range(1, x.ndim - 1))
    first, second = jnp.mean(x, inner), jnp.mean(jnp.square(x), inner)
    if weights is None:
        mean, square = jnp.mean(first, 0), jnp.mean(second, 0)
    else:
        shares = weights / jnp.sum(weights)
        mean, square = (jnp.dot(shares, m, precision="highest") for m in (first, second))
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def linen_features(module: nn.Module, method: str = "features") -> FeaturesFn:
    """Return what a Linen module's last layer reads, beside its logits, in evaluation mode.

    The result maps ``(params, model_state, inputs [b, ...])`` to
    ``(features [b, d], logits [b, c])``; the gradient of the loss with respect to the last layer is
    the outer product of the features and the gradient with respect to the logits.

    Args:
        module: the module, as for `from_linen`.
        method: name of its method ``(self, inputs, train) -> (features, logits)``.

    Raises:
        TypeError: if the module has no such method or it takes no ``train``.

    >>> import jax.numpy as jnp
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def features(self, x, train=False):
    ...         x = nn.relu(nn.Dense(4)(x))
    ...         return x, nn.Dense(3)(x)
    ...     def __call__(self, x, train):
    ...         return self.features(x, train)[1]
    >>> model, inputs = Model(), jnp.ones((2, 5))
    >>> variables = model.init(jax.random.key(0), inputs, train=False)
    >>> features, logits = linen_features(model)(variables["params"], {}, inputs)
    >>> features.shape, logits.shape
    ((2, 4), (2, 3))
    """
    _check_train_argument(module, method)
    return _LinenFeatures(module, method)


@dataclasses.dataclass(frozen=True)
class _LinenFeatures:
    module: nn.Module
    method: str

    def __call__(self, params: Params, model_state: ModelState, inputs: Array) -> tuple[Array, Array]:
        variables = {"params": params, **model_state}
        result: Any = self.module.apply(variables, inputs, train=False, method=self.method)
        return result


def from_nnx(model: nnx.Module) -> tuple[ApplyFn, Params, ModelState]:
    """Return an NNX model as a pure function, with its parameters and its state.

    ``params`` holds every ``nnx.Param``; ``model_state`` holds the other variables (BatchNorm
    statistics, say) except random streams. Every call works on a copy of ``model``, switched by
    ``train()`` or ``eval()``, and in training draws every random stream afresh from ``rng``.
    ``model`` itself is left as it was; `nnx.update` writes trained parameters back into it.

    Args:
        model: maps inputs [b, ...] to logits [b, c] when called.

    Returns:
        The function, ``params`` and ``model_state``. The function raises ValueError if it is called
        with ``train=True`` and ``rng=None`` and the model holds a random stream.

    >>> import jax.numpy as jnp
    >>> class Model(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.hidden = nnx.Linear(5, 4, rngs=rngs)
    ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
    ...         self.dropout = nnx.Dropout(0.5, rngs=rngs)
    ...         self.head = nnx.Linear(4, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.head(self.dropout(self.norm(self.hidden(x))))
    >>> apply_fn, params, state = from_nnx(Model(nnx.Rngs(0)))
    >>> inputs = jnp.ones((2, 5))
    >>> logits, state = apply_fn(params, state, inputs, train=True, rng=jax.random.key(1))
    >>> logits.shape, list(state)
    ((2, 3), ['norm'])
    """
    graph, *states = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, streams, model_state = states
    draws = bool(jax.tree.leaves(streams))

    def apply_fn(
        params: Params, model_state: ModelState, inputs: Array, *, train: bool, rng: Array | None
    ) -> tuple[Array, ModelState]:
        if train and draws and rng is None:
            raise ValueError(
                "rng is None, but this model draws random numbers in training: pass a key."
            )
        seeded = streams if rng is None else _reseed(streams, rng)
        # The copy keeps the variables of an outer trace (grad, vmap) from being written to.
        copy = nnx.merge(graph, params, seeded, model_state, copy=True)
        if not train:
            copy.eval()
            return copy(inputs), model_state
        copy.train()
        logits = copy(inputs)
        _, *states = nnx.split(copy, nnx.Param, nnx.RngState, ...)
        return logits, states[2]

    return apply_fn, params, model_state


def _reseed(streams: PyTree, rng: Array) -> PyTree:
    """Return random streams with keys drawn from ``rng``; their counters stay."""
    leaves, structure = jax.tree.flatten(streams)
    for position, leaf in enumerate(leaves):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaves[position] = jax.random.split(jax.random.fold_in(rng, position), leaf.shape)
    return jax.tree.unflatten(structure, leaves)


def _check_train_argument(module: nn.Module, method: str) -> None:
    """Raise TypeError unless ``module`` has ``method`` and it takes ``train`` by name."""
    name = type(module).__name__
    function: Any = getattr(module, method, None)
    if not callable(function):
        raise TypeError(
            f"{name} has no method {method!r}, but one that returns (features, logits) is needed: "
            f"define it or name another."
        )
    parameters = inspect.signature(function).parameters.values()
    if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError(
            f"{name}.{method} takes no argument train, but the same module must serve training "
            f"and evaluation: declare it as {method}(self, inputs, train)."
        )
