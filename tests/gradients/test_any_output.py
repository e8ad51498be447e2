"""Losses and embeddings of logits of any rank, and of any loss, against ``jax.grad`` by example."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import numpy_cross_entropy, numpy_distances

from crest_jax import ArraySource, Examples, cross_entropy, last_layer_gradients, logit_gradients
from crest_jax.coresets.distances import sums_of_all
from crest_jax.gradients.chunked import bytes_needed, in_chunks
from crest_jax.gradients.losses import fitting, per_example
from crest_jax.gradients.sketches import sketched_products

COUNT, FEATURES, OUTPUTS = 7, 5, 3
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(FEATURES, OUTPUTS)), jnp.float32)
BIAS = jnp.asarray(RNG.normal(size=OUTPUTS), jnp.float32)


def squared(logits, labels):
    return jnp.sum(jnp.square(logits - labels), axis=-1)


def sigmoid(logits, labels):
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)


def masked_tokens(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels["next"])
    return jnp.sum(losses * labels["mask"], axis=1) / jnp.sum(labels["mask"], axis=1)


def absolute(logits, labels):
    return jnp.abs(logits[..., 0] - labels)


# name: shape of the positions, loss, labels
TASKS = {
    "classes": ((), cross_entropy, RNG.integers(0, OUTPUTS, COUNT)),
    "regression": ((), squared, np.float32(RNG.normal(size=(COUNT, OUTPUTS)))),
    "one number": ((), absolute, np.float32(RNG.normal(size=COUNT))),
    "multi-label": ((), sigmoid, RNG.integers(0, 2, (COUNT, OUTPUTS))),
    "tokens": ((4,), cross_entropy, RNG.integers(0, OUTPUTS, (COUNT, 4))),
    "masked tokens": (
        (4,),
        masked_tokens,
        {"next": RNG.integers(0, OUTPUTS, (COUNT, 4)), "mask": np.float32(np.tri(COUNT, 4, 1) > 0)},
    ),
    "segmentation": ((2, 3), cross_entropy, RNG.integers(0, OUTPUTS, (COUNT, 2, 3), np.uint8)),
}


def task(name):
    positions, loss_fn, labels = TASKS[name]
    inputs = jnp.asarray(RNG.normal(size=(COUNT, *positions, FEATURES)), jnp.float32)
    return loss_fn, Examples(inputs, jax.tree.map(jnp.asarray, labels))


def linear(params, model_state, inputs, *, train, rng):
    weights, bias = params
    return inputs @ weights + bias.reshape((1,) * (inputs.ndim - 1) + (-1,)), model_state


def features(params, model_state, inputs):
    return inputs, linear(params, model_state, inputs, train=False, rng=None)[0]


def layer_gradients(loss_fn, examples):
    """Gradients for weights and bias, [n, d + 1, c], one call of ``jax.grad`` for each example."""

    def loss(params, one):
        return loss_fn(linear(params, {}, one.inputs[None], train=False, rng=None)[0], one.labels)[0]

    rows = []
    for i in range(COUNT):
        one = jax.tree.map(lambda x, i=i: x[i], examples)
        one = one._replace(labels=jax.tree.map(lambda x: x[None], one.labels))
        weights, bias = jax.grad(loss)((WEIGHTS, BIAS), one)
        rows.append(np.concatenate([np.asarray(weights), np.asarray(bias)[None]]))
    return np.asarray(rows, np.float64)


@pytest.mark.parametrize("name", TASKS)
def test_embeddings_are_the_gradients_of_the_last_layer(name):
    loss_fn, examples = task(name)
    exact = layer_gradients(loss_fn, examples)
    logit, losses = logit_gradients(linear, loss_fn)((WEIGHTS, BIAS), {}, examples)
    np.testing.assert_allclose(logit, exact[:, -1], rtol=1e-4, atol=1e-6)
    embed = last_layer_gradients(features, loss_fn)
    last, again = in_chunks(embed, (WEIGHTS, BIAS), {}, examples, 3)
    assert losses.tolist() == pytest.approx(again.tolist(), rel=1e-6)
    if isinstance(last, tuple):
        found = np.einsum("bc,bd->bdc", np.asarray(last.left), np.asarray(last.right))
    else:
        found = np.asarray(last).reshape(COUNT, OUTPUTS, FEATURES + 1).transpose(0, 2, 1)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)
    distances = np.asarray(sums_of_all(last, "squared"))
    expected = numpy_distances(exact.reshape(COUNT, -1)) ** 2
    np.testing.assert_allclose(distances, expected, rtol=1e-3, atol=1e-5)


def test_the_cross_entropy_of_positions_is_their_mean():
    _, examples = task("tokens")
    logits = np.asarray(linear((WEIGHTS, BIAS), {}, examples.inputs, train=False, rng=None)[0])
    flat = numpy_cross_entropy(logits.reshape(-1, OUTPUTS), np.asarray(examples.labels).ravel())
    found = cross_entropy(jnp.asarray(logits), examples.labels)
    np.testing.assert_allclose(found, flat.reshape(COUNT, 4).mean(axis=1), rtol=1e-5)


def test_a_label_without_a_logit_makes_only_its_own_example_nan():
    _, examples = task("tokens")
    labels = examples.labels.at[2, 1].set(OUTPUTS)
    logits = linear((WEIGHTS, BIAS), {}, examples.inputs, train=False, rng=None)[0]
    assert np.flatnonzero(np.isnan(jax.jit(cross_entropy)(logits, labels))).tolist() == [2]
    with pytest.raises(ValueError, match=r"label 3 has no logit of its own among 3 logits"):
        cross_entropy(logits, labels)


def test_several_outputs_lie_beside_each_other():
    def two(params, model_state, inputs, *, train, rng):
        logits, _ = linear(params, model_state, inputs, train=train, rng=rng)
        return {"class": logits, "size": inputs[:, 0]}, model_state

    def loss_fn(outputs, labels):
        return cross_entropy(outputs["class"], labels["class"]) + jnp.square(
            outputs["size"] - labels["size"]
        )

    _, examples = task("classes")
    labels = {"class": examples.labels, "size": jnp.zeros(COUNT)}
    found, _ = logit_gradients(two, loss_fn)((WEIGHTS, BIAS), {}, Examples(examples.inputs, labels))
    plain, _ = logit_gradients(linear)((WEIGHTS, BIAS), {}, examples)
    np.testing.assert_allclose(found[:, :OUTPUTS], plain, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[:, OUTPUTS], 2 * examples.inputs[:, 0], rtol=1e-6)


def test_large_products_are_sketched_without_bias_and_as_closely_as_promised():
    left = jnp.asarray(RNG.normal(size=(2, 3, 6)), jnp.float32)
    right = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
    exact = np.einsum("btc,btd->bcd", left, right).reshape(2, -1).astype(np.float64)
    keys = jax.random.split(jax.random.key(1), 400)
    for dimension in (16, 64):
        sketches = jax.vmap(lambda key, d=dimension: sketched_products(key, left, right, d))(keys)
        products = np.asarray(jnp.einsum("kd,kd->k", sketches[:, 0], sketches[:, 1]), np.float64)
        scale = np.linalg.norm(exact[0]) * np.linalg.norm(exact[1])
        spread = products.std()
        assert abs(products.mean() - exact[0] @ exact[1]) < 4 * spread / np.sqrt(len(keys))
        assert spread < 9 / np.sqrt(dimension) * scale, "three positions, each with 3 / sqrt(d)"
    assert not np.array_equal(sketches[0], sketches[1]), "other keys, other sketches"


def test_the_last_layer_of_tokens_is_sketched_above_the_dimension_and_kept_below():
    loss_fn, examples = task("tokens")
    exact = last_layer_gradients(features, loss_fn)((WEIGHTS, BIAS), {}, examples)[0]
    kept = last_layer_gradients(features, loss_fn, dimension=18)((WEIGHTS, BIAS), {}, examples)[0]
    assert kept.tolist() == exact.tolist()
    small = last_layer_gradients(features, loss_fn, dimension=17)((WEIGHTS, BIAS), {}, examples)[0]
    assert small.shape == (COUNT, 17)
    wide = last_layer_gradients(features, loss_fn, dimension=16)
    assert wide == last_layer_gradients(features, loss_fn, dimension=16), "equal, to share programs"


def test_bad_losses_and_features_are_refused_in_a_sentence():
    loss_fn, examples = task("tokens")
    with pytest.raises(ValueError, match=r"losses of shape \(7, 4\) for 7 examples.*average over"):
        per_example(lambda z, y: z[..., 0], jnp.zeros((7, 4, 3)), examples.labels)
    wrong = last_layer_gradients(lambda p, s, x: (x[:, 0], x @ p[0]), loss_fn)
    with pytest.raises(ValueError, match=r"features have shape \(7, 5\) and logits \(7, 4, 3\)"):
        wrong((WEIGHTS, BIAS), {}, examples)
    with pytest.raises(ValueError, match="dimension is 0 but must be an integer of at least 1"):
        last_layer_gradients(features, dimension=0)
    with pytest.raises(ValueError, match=r"logits have shape \(7,\) but must have shape \[b, c\]"):
        cross_entropy(jnp.zeros(7), jnp.zeros(7, int))
    with pytest.raises(ValueError, match=r"labels have shape \(7,\) for logits of shape \(7, 4, 3\)"):
        cross_entropy(jnp.zeros((7, 4, 3)), jnp.zeros(7, int))
    below = ArraySource(np.zeros((2, 1)), np.array([-1, 0]))
    with pytest.raises(ValueError, match="the lowest label is -1 but the model's 3 logits are for"):
        fitting(cross_entropy, below)(jnp.zeros((1, 3)), jnp.array([0]))


@pytest.mark.parametrize("keeps", [False, True])
def test_embeddings_that_are_read_from_the_data_need_no_memory(keeps):
    examples = Examples(jnp.ones((5, 3)), jnp.zeros(5))
    given = lambda params, state, examples: (examples.inputs, examples.labels)  # noqa: E731
    assert bytes_needed(given, {}, {}, examples, keeps=keeps) == 0
