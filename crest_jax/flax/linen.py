"""Flax Linen modules as pure functions."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from crest_jax import _checks
from crest_jax.flax.linen_calls import Switching, sentences, switching
from crest_jax.flax.linen_last_layer import ByLayer
from crest_jax.types import ApplyFn, Array, FeaturesFn, ModelState, Params, PyTree


def from_linen(
    module: nn.Module, *, rngs: Sequence[str] = ("dropout",), keyword_inputs: bool = False
) -> ApplyFn:
    """Return a Linen module as a pure function.

    The module is called with the inputs, any pytree, as one argument. Its switch between training and
    evaluation may be an argument of ``__call__`` or a field, named ``train`` or ``training``, or
    ``deterministic`` or ``use_running_average``, which mean the opposite; a module that acts the same
    in both needs none. In ``nn.Sequential``, layers that leave theirs open (``nn.Dropout(0.5)``) are
    switched.

    Of the variables that ``module.init`` returns, ``params`` is the collection of that name and
    ``model_state`` the dict of all others (``{"batch_stats": ...}``, or ``{}``). In training their new
    values are returned; a collection whose values change their number or shape (what a module sows)
    comes back as it was. In evaluation the same object comes back. Weights [b], if the function is
    called with any, go to a training module that takes ``weights`` (see `WeightedBatchNorm`).

    Args:
        module: maps inputs, arrays [b, ...], to logits [b, c].
        rngs: names of the random streams that the module reads in training. Each gets a key of its
            own, split from ``rng``; with ``rng=None`` it gets none.
        keyword_inputs: call the module with the entries of the inputs, a dict, as arguments by name
            (``module(**inputs)``), as Hugging Face models are called.

    Returns:
        A function ``(params, model_state, inputs, *, train, rng, weights=None)`` that returns the
        logits and the new state.

    Raises:
        ValueError: if it is no Linen module, or how to call or to switch it cannot be known; on a
            call, if it draws random numbers without a key, or in evaluation, or changes state that is
            not there.

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
    _checks.require(
        not isinstance(rngs, str) and all(isinstance(name, str) for name in rngs),
        f"rngs is {_checks.brief(rngs)} but must be a sequence of names; pass a tuple such as "
        '("dropout",).',
    )
    return _Linen(switching(module, "__call__", keyword_inputs), tuple(rngs))


# A value, so that what is compiled for equal modules is shared.
@dataclasses.dataclass(frozen=True)
class _Linen:
    model: Switching
    rngs: tuple[str, ...]

    @property
    def features_fn(self) -> FeaturesFn:
        """What the last linear layer reads, beside the logits; see ``linen_features``."""
        return ByLayer(self.model, None)

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
        variables = {"params": params, **model_state}
        with sentences(self.model, model_state, train=train, rng=rng):
            if not train:
                logits: Any = self.model.apply(variables, inputs, train=False)
                return logits, model_state
            keys = {}
            if rng is not None:
                keys = dict(zip(self.rngs, jax.random.split(rng, len(self.rngs)), strict=True))
            logits, found = self.model.apply(
                variables, inputs, train=True, weights=weights, rngs=keys, mutable=list(model_state)
            )
        return logits, {name: _alike(old, found.get(name, old)) for name, old in model_state.items()}


def _alike(old: PyTree, new: PyTree) -> PyTree:
    """Return a collection's new values, or the old where they changed their number or shape."""
    structures: Any = jax.tree.structure(old), jax.tree.structure(new)
    if structures[0] == structures[1] and jax.tree.all(
        jax.tree.map(lambda x, y: jnp.shape(x) == jnp.shape(y), old, new)
    ):
        return new
    return old
