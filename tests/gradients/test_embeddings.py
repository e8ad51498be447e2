"""Embeddings against automatic differentiation, explicit outer products and NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    init_mlp,
    mlp,
    mlp_features,
    numpy_cross_entropy,
    numpy_distances,
    numpy_mlp,
    numpy_softmax,
)

from crest_jax import (
    ArraySource,
    Examples,
    Factored,
    cross_entropy,
    last_layer_gradients,
    logit_gradients,
    sketched_gradients,
)
from crest_jax.coresets.distances import sums_of_all
from crest_jax.gradients import embed_rows, embeddings, sketches, weighted_mean
from crest_jax.gradients.chunked import in_chunks
from crest_jax.gradients.embeddings import logit_residuals
from crest_jax.gradients.sketches import count_sketch


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = init_mlp(1, 5, 4, 3)
    inputs = jnp.asarray(rng.normal(size=(11, 5)), jnp.float32)
    return params, Examples(inputs, jnp.asarray(rng.integers(0, 3, 11)))


def squared_error(logits, labels):
    return jnp.sum((logits - jax.nn.one_hot(labels, logits.shape[1])) ** 2, axis=1)


def one_loss(params, inputs, label, loss_fn):
    """The loss of a single example, for ``jax.grad``."""
    return loss_fn(mlp_features(params, {}, inputs[None])[1], label[None])[0]


def true_gradients(params, examples, loss_fn=cross_entropy):
    """Per-example gradients in all parameters, one ``jax.grad`` call per example."""
    gradient = jax.jit(lambda x, y: jax.grad(one_loss)(params, x, y, loss_fn))
    return [gradient(x, y) for x, y in zip(examples.inputs, examples.labels, strict=True)]


def relative_errors(found, exact):
    """Relative errors off the diagonal of [n, n] arrays."""
    off = ~np.eye(len(exact), dtype=bool)
    assert (exact[off] > 0).all()
    return np.abs(np.asarray(found, np.float64) - exact)[off] / exact[off]


def test_cross_entropy_and_its_residuals_match_numpy_at_extreme_logits():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20, 6)) * np.logspace(-3, 2.5, 20)[:, None]
    labels = rng.integers(0, 6, 20)
    expected = numpy_softmax(logits.astype(np.float32)) - np.eye(6)[labels]
    arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    np.testing.assert_allclose(logit_residuals(*arrays), expected, atol=2e-6)
    losses = numpy_cross_entropy(logits.astype(np.float32), labels)
    np.testing.assert_allclose(cross_entropy(*arrays), losses, rtol=1e-5, atol=2e-6)
    gradients = jax.vmap(jax.grad(lambda z, y: cross_entropy(z[None], y[None])[0]))(*arrays)
    np.testing.assert_allclose(logit_residuals(*arrays), gradients, atol=2e-6)


def test_weighted_mean_matches_numpy():
    rng = np.random.default_rng(2)
    losses, weights = rng.random(9), rng.integers(1, 9, 9)
    found = weighted_mean(jnp.asarray(losses, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(found, np.average(losses, weights=weights), rtol=1e-6)


def test_logit_gradients_match_numpy(problem):
    params, examples = problem
    gradients, losses = jax.jit(logit_gradients(mlp))(params, {}, examples)
    logits = numpy_mlp(params, examples.inputs)
    onehot = np.eye(3)[np.asarray(examples.labels)]
    np.testing.assert_allclose(gradients, numpy_softmax(logits) - onehot, atol=1e-6)
    np.testing.assert_allclose(losses, numpy_cross_entropy(logits, examples.labels), rtol=1e-5)


def test_logit_gradients_of_another_loss_match_its_formula(problem):
    params, examples = problem
    gradients, losses = logit_gradients(mlp, squared_error)(params, {}, examples)
    gaps = numpy_mlp(params, examples.inputs) - np.eye(3)[np.asarray(examples.labels)]
    np.testing.assert_allclose(gradients, 2 * gaps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, (gaps**2).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("loss_fn", [cross_entropy, squared_error])
def test_last_layer_factors_multiply_to_the_true_gradients(problem, loss_fn):
    params, examples = problem
    factored, losses = last_layer_gradients(mlp_features, loss_fn)(params, {}, examples)
    truth = true_gradients(params, examples, loss_fn)
    for i, gradient in enumerate(truth):
        weight, bias = gradient[-1]  # [d, c], [c]
        expected = np.concatenate([np.asarray(weight).T, np.asarray(bias)[:, None]], axis=1)
        outer = np.outer(factored.left[i], factored.right[i])
        np.testing.assert_allclose(outer, expected, rtol=1e-5, atol=1e-6)
    logits = mlp_features(params, {}, examples.inputs)[1]
    np.testing.assert_allclose(losses, loss_fn(logits, examples.labels), rtol=1e-6)


def outer_distances(factored):
    """Squared distances [n, n] of the explicit outer products in float64."""
    left, right = (np.asarray(x, np.float64) for x in factored)
    return numpy_distances(left[:, :, None] * right[:, None, :]) ** 2


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
def test_factored_distances_match_outer_products_even_for_nearly_equal_rows(gap):
    rng = np.random.default_rng(3)
    left = rng.normal(size=(1, 4)) + gap * rng.normal(size=(12, 4))
    right = 3 * rng.normal(size=(1, 7)) + gap * rng.normal(size=(12, 7))
    factored = Factored(jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32))
    exact = outer_distances(factored)
    found = np.asarray(sums_of_all(factored, "squared"))
    assert relative_errors(found, exact).max() < 2e-5
    assert (np.diag(found) == 0).all()
    if gap == 1e-4:  # the textbook expansion fails here, so this case tests something
        a, b = (np.asarray(x) for x in factored)
        norms = (a**2).sum(1) * (b**2).sum(1)
        textbook = norms[:, None] + norms[None, :] - 2 * (a @ a.T) * (b @ b.T)
        assert np.median(relative_errors(textbook, exact)) > 0.1


def test_factored_distances_of_a_model_match_its_true_gradients(problem):
    params, examples = problem
    factored, _ = last_layer_gradients(mlp_features)(params, {}, examples)
    flat = [
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in gradient[-1]])
        for gradient in true_gradients(params, examples)
    ]
    exact = numpy_distances(np.array(flat)) ** 2
    assert relative_errors(sums_of_all(factored, "squared"), exact).max() < 1e-4


@pytest.mark.parametrize("gap", [1.0, 1e-4])
def test_plain_distances_match_float64(gap):
    rng = np.random.default_rng(4)
    points = np.float32(5 * rng.normal(size=(1, 6)) + gap * rng.normal(size=(12, 6)))
    found = np.asarray(sums_of_all(jnp.asarray(points), "squared"))
    assert relative_errors(found, numpy_distances(points) ** 2).max() < 1e-6
    assert (np.diag(found) == 0).all()
    assert (found == found.T).all()


def rolled_by_hand(key, tree, dimension):
    """The count sketch of a tree of arrays, value by value in float64."""
    flat = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    large = [leaf for leaf in flat if leaf.size >= sketches.LARGE]
    found = np.zeros(dimension)
    small = [leaf for leaf in flat if leaf.size < sketches.LARGE]
    for index, values in enumerate([*large, np.concatenate(small)]):
        count = -(-len(values) // dimension)
        offset_key, sign_key = jax.random.split(jax.random.fold_in(key, index))
        offsets = np.asarray(jax.random.randint(offset_key, (count,), 0, dimension))
        signs = np.asarray(jax.random.rademacher(sign_key, (count, dimension)), np.float64).ravel()
        for place, (value, sign) in enumerate(zip(values, signs, strict=False)):
            block, within = divmod(place, dimension)
            found[(within + offsets[block]) % dimension] += sign * value
    return found


@pytest.mark.parametrize("large", [2**16, 6])
def test_sketched_gradients_are_the_sketch_of_the_true_gradients(problem, large, monkeypatch):
    monkeypatch.setattr(sketches, "LARGE", large)
    params, examples = problem
    key, dimension = jax.random.key(5), 8
    found, losses = jax.jit(sketched_gradients(key, mlp, dimension))(params, {}, examples)
    expected = [rolled_by_hand(key, g, dimension) for g in true_gradients(params, examples)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    logits = numpy_mlp(params, examples.inputs)
    np.testing.assert_allclose(losses, numpy_cross_entropy(logits, examples.labels), rtol=1e-5)


def test_a_sketch_is_the_same_on_an_accelerator_and_cut_to_its_memory(problem, monkeypatch):
    params, examples = problem
    embed = sketched_gradients(jax.random.key(5), mlp, 8)
    whole, _ = embed(params, {}, examples)
    values = sum(leaf.size for leaf in jax.tree.leaves(params))
    monkeypatch.setattr(embeddings, "MOST_VALUES", 3 * values + 1)
    held = [
        eqn.params for eqn in jax.make_jaxpr(embed)(params, {}, examples).eqns if "length" in eqn.params
    ]
    assert [loop["length"] for loop in held] == [len(examples.labels) // 3]
    np.testing.assert_allclose(embed(params, {}, examples)[0], whole, rtol=1e-5, atol=1e-6)

    rng = np.random.default_rng(3)
    blocks, signs = rng.normal(size=(7, 5)), rng.choice([-1.0, 1.0], (7, 5))
    both = [
        add(jnp.float32(blocks), jnp.float32(signs), jnp.arange(7, dtype=jnp.int32) % 5)
        for add in (sketches._sum_rolled, sketches._sum_rolled_in_turn)
    ]
    by_hand = sum(np.roll(row, i % 5) for i, row in enumerate(blocks * signs))
    for found in both:
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)


def test_count_sketch_keeps_products_and_distances_within_the_stated_deviation():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 12))
    y = x + 0.5 * y
    trees = [{"a": jnp.float32(v[:6]).reshape(2, 3), "b": jnp.float32(v[6:])} for v in (x, y)]
    keys, dimension = 4000, 5
    sketch = jax.jit(
        jax.vmap(lambda key: jnp.stack([count_sketch(key, tree, dimension) for tree in trees]))
    )
    both = np.asarray(sketch(jax.random.split(jax.random.key(7), keys)), np.float64)
    products = (both[:, 0] * both[:, 1]).sum(axis=1)
    distances = ((both[:, 0] - both[:, 1]) ** 2).sum(axis=1)
    for values, truth, scale in (
        (products, x @ y, np.linalg.norm(x) * np.linalg.norm(y)),
        (distances, ((x - y) ** 2).sum(), ((x - y) ** 2).sum()),
    ):
        stated = np.sqrt(2 / dimension) * scale
        assert abs(values.mean() - truth) < 5 * stated / np.sqrt(keys)
        assert 0.5 * stated < values.std() < 1.1 * stated


def test_a_sketch_needs_a_positive_dimension():
    with pytest.raises(ValueError, match=r"dimension is 0 but must be.*pass a positive"):
        sketched_gradients(jax.random.key(0), mlp, 0)


def test_embedding_rows_in_chunks_equals_embedding_them_at_once(problem):
    params, examples = problem
    source = ArraySource(np.asarray(examples.inputs), np.asarray(examples.labels))
    rows = np.array([10, 0, 3, 3, 7, 1, 2, 9, 4])
    traces = []

    def embed(params, model_state, examples):
        traces.append(examples.inputs.shape)
        return last_layer_gradients(mlp_features)(params, model_state, examples)

    found, losses = embed_rows(jax.jit(embed), params, {}, source, rows, chunk_size=4)
    assert traces == [(4, 5)], "one compiled program serves all chunks"
    whole = numpy_mlp(params, examples.inputs)[rows]
    labels = np.asarray(examples.labels)[rows]
    residuals = numpy_softmax(whole) - np.eye(3)[labels]
    np.testing.assert_allclose(found.left, residuals, atol=1e-6)
    weight, bias = (np.asarray(x, np.float64) for x in params[0])
    features = np.tanh(np.asarray(examples.inputs)[rows] @ weight + bias)
    np.testing.assert_allclose(found.right, np.c_[features, np.ones(9)], atol=1e-6)
    np.testing.assert_allclose(losses, numpy_cross_entropy(whole, labels), rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "chunk_size", "message"),
    [
        (np.zeros(0, int), 4, r"rows have shape \(0,\).*pass rows"),
        (np.zeros((2, 2), int), 4, r"rows have shape \(2, 2\).*pass rows"),
        (np.arange(3), 0, "chunk_size is 0.*pass a positive integer"),
    ],
)
def test_embedding_rows_refuses_bad_input_in_a_sentence(problem, rows, chunk_size, message):
    params, examples = problem
    source = ArraySource(np.asarray(examples.inputs), np.asarray(examples.labels))
    with pytest.raises(ValueError, match=message):
        embed_rows(logit_gradients(mlp), params, {}, source, rows, chunk_size=chunk_size)


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 11, 100])
def test_chunks_in_one_program_change_nothing(problem, chunk):
    params, examples = problem
    embed = last_layer_gradients(mlp_features)
    whole, losses = embed(params, {}, examples)
    found, chunk_losses = jax.jit(lambda p, e: in_chunks(embed, p, {}, e, chunk))(params, examples)
    assert len(losses) == 11
    np.testing.assert_allclose(chunk_losses, losses, rtol=1e-6)
    for part, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [jnp.int32, jnp.uint8, jnp.int8])
def test_a_label_without_a_logit_is_nan_inside_jit_in_loss_residual_and_gradient(kind):
    labels = jnp.array([0, 3, -1, 2]).astype(kind)  # the third is 255 where the type has no sign
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    right = np.array([True, False, False, True])
    losses = jax.jit(cross_entropy)(logits, labels)
    each = jax.jit(jax.vmap(jax.grad(lambda z, y: cross_entropy(z[None], y[None])[0])))(logits, labels)
    residuals = jax.jit(logit_residuals)(logits, labels)
    assert np.isfinite(losses).tolist() == right.tolist()
    for found in (each, residuals):
        assert np.isnan(found[~right]).all()
        expected = numpy_softmax(logits)[right] - np.eye(3)[[0, 2]]
        np.testing.assert_allclose(found[right], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), r"label 3 has no logit of its own among 3 logits.*\[0, 3\); renumber"),
        (np.array([0, -1]), r"label -1 has no logit"),
        (np.array([0, 2**33 + 1]), r"label 8589934593 has no logit"),
        (np.array([[0], [1]]), r"labels have shape \(2, 1\) for logits of shape \(2, 3\).*argmax"),
        (np.eye(3)[:2], r"labels have shape \(2, 3\)"),
        (np.array([0.0, 1.0]), "labels have dtype float32 but must be integers; cast"),
        (np.array([False, True]), "labels have dtype bool"),
        (np.int32(1), r"labels have shape \(\)"),
    ],
)
def test_wrong_labels_are_named(labels, message):
    logits = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, labels)
    if "no logit" not in message:  # shapes and types are known while tracing
        with pytest.raises(ValueError, match=message):
            jax.jit(cross_entropy)(logits, labels)
    with pytest.raises(ValueError, match=r"logits have shape \(2,\) but must have shape \[b, c\]"):
        cross_entropy(jnp.zeros(2), labels)


def test_a_gradient_taken_outside_jit_names_the_label_too():
    with pytest.raises(ValueError, match="label 3 has no logit"):
        jax.grad(lambda z: cross_entropy(z, jnp.array([3])).sum())(jnp.zeros((1, 3)))


@pytest.mark.parametrize(
    ("losses", "weights"), [((4, 1), (4,)), ((4,), (4, 1)), ((4,), ()), ((), ()), ((4,), (3,))]
)
def test_a_weighted_mean_takes_one_loss_for_each_weight(losses, weights):
    for mean in (weighted_mean, jax.jit(weighted_mean)):
        with pytest.raises(ValueError, match=r"losses have shape .* but both must be .m.*; flatten"):
            mean(jnp.ones(losses), jnp.ones(weights))


BAD_LOSSES = {
    "mean": lambda logits, labels: cross_entropy(logits, labels).mean(),
    "column": lambda logits, labels: cross_entropy(logits, labels)[:, None],
}


@pytest.mark.parametrize("loss_fn", BAD_LOSSES.values(), ids=BAD_LOSSES)
@pytest.mark.parametrize(
    "embed",
    [
        lambda loss_fn: logit_gradients(mlp, loss_fn),
        lambda loss_fn: last_layer_gradients(mlp_features, loss_fn),
        lambda loss_fn: sketched_gradients(jax.random.key(0), mlp, 4, loss_fn),
    ],
    ids=["logits", "last layer", "sketch"],
)
def test_a_loss_that_is_not_one_for_each_example_is_refused(problem, embed, loss_fn):
    params, examples = problem
    with pytest.raises(ValueError, match=r"losses of shape .* but must .*; average over"):
        jax.jit(embed(loss_fn))(params, {}, examples)


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (lambda x: (x.sum(0), x.sum(1)), r"embeddings of shape \[\(5,\)\] for 4 examples"),
        (lambda x: ((x, x[:2]), x.sum(1)), r"embeddings of shape \[\(4, 5\), \(2, 5\)\]"),
        (lambda x: ((), x.sum(1)), r"embeddings of shape \[\]"),
        (lambda x: (x, x.sum()), r"losses of shape \(\) for 4 examples"),
        (lambda x: (x, x[:, :1]), r"losses of shape \(4, 1\) for 4 examples"),
    ],
)
def test_embeddings_have_one_row_for_each_example(problem, embed, message):
    params, examples = problem
    source = ArraySource(np.asarray(examples.inputs), np.asarray(examples.labels))
    with pytest.raises(ValueError, match=message + r".* but .*; (take no|leave out the) mean"):
        embed_rows(lambda p, s, e: embed(e.inputs), params, {}, source, np.arange(7), chunk_size=4)


@pytest.mark.parametrize("rows", [np.array([0, 11]), np.array([-1, 2]), np.array([0.5, 1.0])])
def test_rows_that_the_source_has_not_are_refused(problem, rows):
    params, examples = problem
    source = ArraySource(np.asarray(examples.inputs), np.asarray(examples.labels))
    with pytest.raises(ValueError, match=r"rows (span|have dtype) .* but must .*; pass positions"):
        embed_rows(logit_gradients(mlp), params, {}, source, rows)


def test_a_sketch_takes_keys_of_both_forms_and_no_plain_number(problem):
    params, examples = problem
    found = [
        jax.jit(sketched_gradients(key, mlp, 4))(params, {}, examples)[0]
        for key in (jax.random.key(5), jax.random.PRNGKey(5))
    ]
    np.testing.assert_array_equal(*found)
    for make in (lambda: sketched_gradients(5, mlp, 4), lambda: count_sketch(5, jnp.ones(3), 4)):
        with pytest.raises(ValueError, match="key is 5 but must be one PRNG key"):
            make()
