"""Per-example gradient embeddings: what facility location measures distances between.

The gradient of an example's loss is dominated by its gradient with respect to the last layer's input
(Katharopoulos and Fleuret, ICML 2018), so CREST compares examples by it (Yang, Kang and
Mirzasoleiman, ICML 2023, Section 4).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from crest_jax import _checks
from crest_jax.gradients.chunked import in_chunks
from crest_jax.gradients.losses import (
    cross_entropy,
    is_cross_entropy,
    label_span,
    labels_fit,
    one_or_nan,
    per_example,
)
from crest_jax.gradients.sketches import count_sketch, sketched_products
from crest_jax.types import (
    ApplyFn,
    Array,
    EmbedFn,
    Examples,
    Factored,
    FeaturesFn,
    LossFn,
    ModelState,
    Params,
    PyTree,
    Source,
)

MOST_VALUES = 2**28  # of per-example gradients at a time: 1 GiB


def logit_residuals(logits: Array, labels: Array) -> Array:
    """Return the gradients of the cross-entropy with respect to the logits, float32, in their shape.

    ``softmax(z) - onehot(y)`` for logits [b, c] and integer labels [b]; of logits [b, ..., c] over the
    number of positions; NaN where a label is outside ``[0, c)``.

    Example:
      >>> logit_residuals(jnp.zeros((1, 2)), jnp.array([1])).tolist()
      [[0.5, -0.5]]
    """
    classes, positions = logits.shape[-1], math.prod(logits.shape[1:-1])
    ones = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    gaps = (jax.nn.softmax(logits.astype(jnp.float32)) - ones) * one_or_nan(labels, classes)[..., None]
    return gaps if positions == 1 else gaps / positions


def _residuals_and_losses(loss_fn: LossFn, logits: PyTree, labels: PyTree) -> tuple[PyTree, Array]:
    """Gradients of each loss with respect to its own logits, in their shape, and the losses [b]."""
    logits = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), logits)
    losses = per_example(loss_fn, logits, labels)
    if is_cross_entropy(loss_fn):
        return logit_residuals(logits, labels), losses
    return jax.grad(lambda z: jnp.sum(loss_fn(z, labels)))(logits), losses


def _summed(residuals: Array) -> Array:
    """Sum gradients [b, ..., c] over the positions; one number [b] for each example becomes [b, 1]."""
    if residuals.ndim == 1:
        return residuals[:, None]
    between = tuple(range(1, residuals.ndim - 1))
    return jnp.sum(residuals, axis=between) if between else residuals


# Embeddings are values: equal ones share compiled programs.
@dataclasses.dataclass(frozen=True)
class _LogitGradients:
    apply_fn: ApplyFn
    loss_fn: LossFn

    def __call__(
        self, params: Params, model_state: ModelState, examples: Examples
    ) -> tuple[Array, Array]:
        logits, _ = self.apply_fn(params, model_state, examples.inputs, train=False, rng=None)
        residuals, losses = _residuals_and_losses(self.loss_fn, logits, examples.labels)
        leaves = [_summed(leaf) for leaf in jax.tree.leaves(residuals)]
        return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=1), losses


@dataclasses.dataclass(frozen=True)
class _LastLayerGradients:
    features_fn: FeaturesFn
    loss_fn: LossFn
    dimension: int

    def __call__(
        self, params: Params, model_state: ModelState, examples: Examples
    ) -> tuple[Factored | Array, Array]:
        features, logits = self.features_fn(params, model_state, examples.inputs)
        residuals, losses = _residuals_and_losses(self.loss_fn, logits, examples.labels)
        left, right = _last_layer(features, residuals)
        if left.ndim == 2:
            return Factored(left, right), losses
        if left.shape[2] * right.shape[2] > self.dimension:
            return sketched_products(jax.random.key(0), left, right, self.dimension), losses
        sums = jnp.einsum("btc,btd->bcd", left, right, precision="highest")
        return sums.reshape(len(sums), -1), losses


def _last_layer(features: Array, residuals: Array) -> tuple[Array, Array]:
    """Return residuals [b, (t,) c] and features [b, (t,) d + 1] with a one; positions on one axis."""
    if residuals.ndim == 1 and features.ndim == 2:
        residuals = residuals[:, None]
    _checks.require(
        features.ndim >= 2 and residuals.shape[:-1] == features.shape[:-1],
        f"features have shape {features.shape} and logits {residuals.shape} but all axes but the last "
        "must agree: what enters the last layer and what leaves it; return these two.",
    )
    ones = jnp.ones((*features.shape[:-1], 1), jnp.float32)
    right = jnp.concatenate([features.astype(jnp.float32), ones], axis=-1)
    if residuals.ndim == 2:
        return residuals, right
    count = len(residuals)
    return (x.reshape(count, -1, x.shape[-1]) for x in (residuals, right))  # type: ignore[return-value]


def logit_gradients(apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy) -> EmbedFn:
    """Embed each example by the gradient of its loss with respect to its logits, [b, c].

    Of sequences and images, logits [b, ..., c], it is the sum over the positions: the gradient for the
    bias of the last layer. The loss of an example is what ``loss_fn`` returns, so the default
    ``cross_entropy``, a mean over the positions, gives the mean of the gradients of the positions.
    Several outputs, a pytree of logits, lie beside each other.

    Args:
      apply_fn: the model; called in evaluation mode.
      loss_fn: per-example losses of any kind: classes, numbers, 0/1, tokens.

    Example:
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> embed = logit_gradients(linear)
      >>> gradients, losses = embed(jnp.zeros((3, 2)), {}, Examples(jnp.ones((1, 3)), jnp.array([0])))
      >>> gradients.tolist()
      [[-0.5, 0.5]]
      >>> squared = lambda z, y: jnp.sum(jnp.square(z - y), axis=1)
      >>> embed = logit_gradients(linear, squared)
      >>> embed(jnp.zeros((3, 1)), {}, Examples(jnp.ones((1, 3)), jnp.array([[2.0]])))[0].tolist()
      [[-4.0]]
    """
    _checks.apply_function(apply_fn)
    return _LogitGradients(apply_fn, loss_fn)


def last_layer_gradients(
    features_fn: FeaturesFn, loss_fn: LossFn = cross_entropy, *, dimension: int = 4096
) -> EmbedFn:
    """Embed each example by the gradient of its loss with respect to the last layer.

    The layer is ``z = W^T a + b``: the gradient for ``(W, b)`` is the outer product of the logit
    gradient and ``(a, 1)``, which is never stored. Of sequences and images it is the sum of these
    products over the positions: exact where it has at most ``dimension`` entries, else its tensor
    sketch of that many (see ``sketched_products``).

    Args:
      features_fn: returns the features [b, ..., d] that enter the last layer and the logits
        [b, ..., c].
      loss_fn: per-example losses of any kind.
      dimension: most entries of an embedding of several positions.

    Returns:
      An embedding function whose embeddings are ``Factored`` with left [b, c], right [b, d + 1]; of
      several positions an array [b, c (d + 1)] or [b, dimension].

    Raises:
      ValueError: when ``dimension`` is below 1 or, while tracing, when features and logits disagree.

    Example:
      >>> embed = last_layer_gradients(lambda params, state, inputs: (inputs, inputs @ params))
      >>> gradients, _ = embed(jnp.zeros((3, 2)), {}, Examples(jnp.ones((1, 3)), jnp.array([0])))
      >>> gradients.left.shape, gradients.right.shape
      ((1, 2), (1, 4))
      >>> tokens = Examples(jnp.ones((1, 6, 3)), jnp.zeros((1, 6), int))
      >>> embed(jnp.zeros((3, 2)), {}, tokens)[0].shape
      (1, 8)
    """
    _checks.positive_int("dimension", dimension)
    _checks.model_function("features_fn", features_fn)
    return _LastLayerGradients(features_fn, loss_fn, dimension)


@dataclasses.dataclass(frozen=True)
class _LastLayerWhereKnown:
    features_fn: FeaturesFn
    apply_fn: ApplyFn
    loss_fn: LossFn

    def __call__(
        self, params: Params, model_state: ModelState, examples: Examples
    ) -> tuple[PyTree, Array]:
        given = params, model_state, examples
        embed = last_layer_gradients(self.features_fn, self.loss_fn)
        try:
            jax.eval_shape(embed, *given)
        except ValueError:  # no linear layer, of one output, returns what the model returns
            embed = logit_gradients(self.apply_fn, self.loss_fn)
        return embed(*given)


def default_gradients(apply_fn: ApplyFn, loss_fn: LossFn = cross_entropy) -> EmbedFn:
    """Embed each example by ``last_layer_gradients`` where the model tells its features.

    Those of ``from_linen`` and ``from_nnx`` do (as ``features_fn``), where a linear layer returns what
    the model returns. Elsewhere the embeddings are ``logit_gradients``.

    Args:
      apply_fn: the model; called in evaluation mode.
      loss_fn: per-example losses of any kind.

    Example:
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> embed = default_gradients(linear)
      >>> embed(jnp.zeros((3, 2)), {}, Examples(jnp.ones((1, 3)), jnp.array([0])))[0].tolist()
      [[-0.5, 0.5]]
    """
    features_fn = getattr(apply_fn, "features_fn", None)
    if features_fn is None:
        return logit_gradients(apply_fn, loss_fn)
    return _LastLayerWhereKnown(features_fn, apply_fn, loss_fn)


def sketched_gradients(
    key: Array, apply_fn: ApplyFn, dimension: int, loss_fn: LossFn = cross_entropy
) -> EmbedFn:
    """Embed each example by a random projection of its gradient in all parameters, [b, dimension].

    A count sketch (Charikar, Chen and Farach-Colton, ICALP 2002; Weinberger et al., ICML 2009):
    coordinate ``i`` is added with sign ``s(i)`` to entry ``h(i)`` (see ``count_sketch``). Inner
    products and squared distances are kept in expectation, with a standard deviation of at most
    ``sqrt(2 / dimension) * |x| |y|``.

    Each example needs a backward pass of its own: several times the cost of ``logit_gradients``, most
    of it in convolutions. Gradients of 1 GiB at most are held at a time.

    Args:
      key: PRNG key; the same key gives the same projection.
      apply_fn: the model; called in evaluation mode, one example at a time under ``vmap``.
      dimension: entries of the sketch.
      loss_fn: per-example losses.

    Raises:
      ValueError: when ``dimension`` is below 1 or the key is none.

    Example:
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> embed = sketched_gradients(jax.random.key(0), linear, dimension=4)
      >>> gradients, _ = embed(jnp.zeros((3, 2)), {}, Examples(jnp.ones((5, 3)), jnp.zeros(5, int)))
      >>> gradients.shape
      (5, 4)
    """
    _checks.positive_int("dimension", dimension)
    _checks.apply_function(apply_fn)
    key = _checks.prng_key("key", key)

    def sketches(params: Params, model_state: ModelState, examples: Examples) -> tuple[Array, Array]:
        def loss(params: Params, one: Examples) -> Array:
            inputs, labels = jax.tree.map(lambda leaf: leaf[None], one)
            logits, _ = apply_fn(params, model_state, inputs, train=False, rng=None)
            return per_example(loss_fn, logits, labels)[0]

        def sketch(one: Examples) -> tuple[Array, Array]:
            value, gradient = jax.value_and_grad(loss)(params, one)
            return count_sketch(key, gradient, dimension), value

        return jax.vmap(sketch)(examples)

    def embed(params: Params, model_state: ModelState, examples: Examples) -> tuple[PyTree, Array]:
        values = sum(leaf.size for leaf in jax.tree.leaves(params))
        at_once = max(1, MOST_VALUES // max(1, values))
        return in_chunks(sketches, params, model_state, examples, at_once)

    embed.backward_passes = 1  # type: ignore[attr-defined]  # counted by ``crest``, for each example
    return embed


def checked_embedding(embed_fn: EmbedFn, loss_fn: LossFn, source: Source) -> EmbedFn:
    """Compile an embedding by logit gradients, which refuses a label without a logit when first traced.

    Logit gradients, and the left factors of last-layer gradients, have a column for each logit.
    """
    span = label_span(getattr(source, "labels", None)) if loss_fn is cross_entropy else None

    def embed(params: Params, model_state: ModelState, examples: Examples) -> tuple[PyTree, Array]:
        embeddings, losses = embed_fn(params, model_state, examples)
        if span is not None:
            labels_fit(span, jax.tree.leaves(embeddings)[0].shape[1])
        return embeddings, losses

    return jax.jit(embed)
