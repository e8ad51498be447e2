"""Flax models through the adapters against Flax's own calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree

from crest_jax import ApplyFn, Examples, Factored, cross_entropy, logit_gradients
from crest_jax.flax import WeightedBatchNorm, from_linen, from_nnx, linen_features
from crest_jax.gradients.embeddings import default_gradients

INPUTS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
KEY = jax.random.key(7)


class LinenModel(nn.Module):
    @nn.compact
    def features(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))
        return x, nn.Dense(3)(x)

    def __call__(self, x, train):
        return self.features(x, train)[1]


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.tanh(self.norm(self.hidden(x)))))


def nnx_parts(model):
    apply_fn = from_nnx(model)
    return apply_fn, *apply_fn.view(model)


def linen_parts():
    model = LinenModel()
    variables = model.init(jax.random.key(0), INPUTS, train=False)
    return from_linen(model), variables["params"], {"batch_stats": variables["batch_stats"]}


@pytest.fixture(params=["linen", "nnx"])
def parts(request):
    return linen_parts() if request.param == "linen" else nnx_parts(NNXModel(nnx.Rngs(0)))


def trained(parts) -> tuple[ApplyFn, object, object]:
    """Return the parts after training calls that moved the state away from its start."""
    apply_fn, params, state = parts
    for step in range(3):
        _, state = apply_fn(params, state, 2 + INPUTS, train=True, rng=jax.random.key(step))
    return apply_fn, params, state


def test_linen_gives_flaxs_own_logits_and_state() -> None:
    apply_fn, params, state = trained(linen_parts())
    variables = {"params": params, **state}
    logits, same = apply_fn(params, state, INPUTS, train=False, rng=None)
    np.testing.assert_array_equal(logits, LinenModel().apply(variables, INPUTS, train=False))
    assert same is state

    logits, after = apply_fn(params, state, INPUTS, train=True, rng=KEY)
    expected, expected_state = LinenModel().apply(
        variables,
        INPUTS,
        train=True,
        rngs={"dropout": jax.random.split(KEY, 1)[0]},
        mutable=["batch_stats"],
    )
    np.testing.assert_array_equal(logits, expected)
    jax.tree.map(np.testing.assert_array_equal, after, expected_state)


def test_nnx_gives_flaxs_own_logits_and_state() -> None:
    model = NNXModel(nnx.Rngs(0))
    model.dropout.rate = 0.0  # the draws of a reseeded stream are the adapter's own
    apply_fn, params, state = nnx_parts(model)
    for _ in range(3):
        logits, state = apply_fn(params, state, INPUTS, train=True, rng=KEY)
        np.testing.assert_array_equal(logits, model(INPUTS))
    own = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, state, own)
    logits, same = apply_fn(params, state, INPUTS, train=False, rng=None)
    assert same is state
    model.eval()
    np.testing.assert_array_equal(logits, model(INPUTS))


def test_nnx_leaves_the_model_as_it_was() -> None:
    model = NNXModel(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    trained(nnx_parts(model))
    after = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not model.dropout.deterministic


def test_linen_and_nnx_agree_on_one_model() -> None:
    apply_linen, params, state = trained(linen_parts())
    model = NNXModel(nnx.Rngs(0))
    for layer, name in [(model.hidden, "Dense_0"), (model.head, "Dense_1")]:
        layer.kernel[...], layer.bias[...] = params[name]["kernel"], params[name]["bias"]
    stats = state["batch_stats"]["BatchNorm_0"]
    model.norm.mean[...], model.norm.var[...] = stats["mean"], stats["var"]
    apply_nnx, nnx_params, nnx_state = nnx_parts(model)
    one, _ = apply_linen(params, state, INPUTS, train=False, rng=None)
    other, _ = apply_nnx(nnx_params, nnx_state, INPUTS, train=False, rng=None)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_training_moves_the_state_and_keeps_its_structure(parts) -> None:
    apply_fn, params, state = parts
    _, after = jax.jit(apply_fn, static_argnames="train")(params, state, INPUTS, train=True, rng=KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert not np.array_equal(old, new)

    def body(carry, key):
        return apply_fn(params, carry, INPUTS, train=True, rng=key)[::-1]

    scanned, _ = jax.lax.scan(body, state, jax.random.split(KEY, 3))
    assert jax.tree.structure(scanned) == jax.tree.structure(state)


def test_the_key_alone_decides_the_draw(parts) -> None:
    apply_fn, params, state = parts
    one, other, again = (
        apply_fn(params, state, INPUTS, train=True, rng=jax.random.key(seed))[0] for seed in (1, 2, 1)
    )
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one, again)


def test_evaluation_treats_every_example_by_itself(parts) -> None:
    apply_fn, params, state = trained(parts)
    together, _ = apply_fn(params, state, INPUTS, train=False, rng=None)
    with_key, _ = apply_fn(params, state, INPUTS, train=False, rng=KEY)
    np.testing.assert_array_equal(together, with_key)
    alone = jax.vmap(lambda x: apply_fn(params, state, x[None], train=False, rng=None)[0][0])
    np.testing.assert_allclose(alone(INPUTS), together, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_gradients_and_curvature_pass_through(parts, train: bool) -> None:
    apply_fn, params, state = trained(parts)

    def loss(params):
        logits, _ = apply_fn(params, state, INPUTS, train=train, rng=KEY if train else None)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])

    flat, unravel = ravel_pytree(params)
    direction = np.random.default_rng(1).normal(size=flat.shape).astype(np.float32)
    direction /= np.linalg.norm(direction)
    product = jax.jit(lambda p, v: jax.jvp(jax.grad(loss), (p,), (v,)))
    gradient, curvature = product(params, unravel(jnp.asarray(direction)))
    assert jax.tree.structure(gradient) == jax.tree.structure(params)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    step = 0.02
    (above, up), (below, down) = (
        value_and_grad(unravel(flat + sign * step * direction)) for sign in (1, -1)
    )
    slope = ravel_pytree(gradient)[0] @ direction
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=0.01, atol=1e-4)
    expected = (ravel_pytree(up)[0] - ravel_pytree(down)[0]) / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(ravel_pytree(curvature)[0], expected, rtol=0.01, atol=1e-3)


def test_per_example_gradients_average_to_the_gradient(parts) -> None:
    apply_fn, params, state = trained(parts)

    def loss(params, inputs):
        return apply_fn(params, state, inputs, train=False, rng=None)[0][:, 0].mean()

    each = jax.vmap(jax.grad(lambda p, x: loss(p, x[None])), in_axes=(None, 0))(params, INPUTS)
    whole = jax.grad(loss)(params, INPUTS)
    for many, one in zip(jax.tree.leaves(each), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(many.mean(axis=0), one, rtol=1e-4, atol=1e-6)


def test_linen_without_state_and_with_two_streams() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            noise = jax.random.normal(self.make_rng("noise"), x.shape) if train else 0.0
            other = jax.random.normal(self.make_rng("other"), x.shape) if train else 0.0
            return nn.Dense(3)(x) + jnp.sum(noise - other)

    params = Model().init(jax.random.key(0), INPUTS, train=False)["params"]
    apply_fn = from_linen(Model(), rngs=("noise", "other"))
    logits, state = apply_fn(params, {}, INPUTS, train=True, rng=KEY)
    evaluated, _ = apply_fn(params, {}, INPUTS, train=False, rng=None)
    assert state == {}
    assert not np.allclose(logits, evaluated)  # equal streams would cancel


def test_linen_features() -> None:
    _, params, state = trained(linen_parts())
    features, logits = jax.jit(linen_features(LinenModel(), method="features"))(params, state, INPUTS)
    variables = {"params": params, **state}
    np.testing.assert_allclose(
        logits, LinenModel().apply(variables, INPUTS, train=False), rtol=1e-5, atol=1e-6
    )
    head = params["Dense_1"]
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None], logits, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("weights", [None, [1, 3, 2, 1]])
@pytest.mark.parametrize("train", [True, False])
def test_weighted_batch_norm_is_batch_norm_on_rows_so_often_repeated(weights, train):
    rng = np.random.default_rng(1)
    x, direction = np.float32(rng.normal(2.0, 3.0, (2, 4, 5, 2, 3)))
    times = np.ones(4, int) if weights is None else np.array(weights)
    rows = np.repeat(np.arange(4), times)
    params = {name: np.float32(rng.uniform(0.5, 1.5, 3)) for name in ("scale", "bias")}
    stats = {name: np.float32(rng.uniform(0.5, 1.5, 3)) for name in ("mean", "var")}
    given = {} if weights is None else {"weights": jnp.asarray(weights, jnp.float32)}

    def run(norm, params, x, **options):
        variables = {"params": params, "batch_stats": stats}
        return norm.apply(variables, x, mutable=["batch_stats"], **options)

    def mine(params, x):
        norm = WeightedBatchNorm(momentum=0.7)
        y, state = run(norm, params, x, use_running_average=not train, **given)
        return jnp.sum(jnp.asarray(times)[:, None, None, None] * y * direction), (y, state)

    def flax(params, x):
        norm = nn.BatchNorm(momentum=0.7, use_fast_variance=False)
        y, state = run(norm, params, x[rows], use_running_average=not train)
        return jnp.sum(y * direction[rows]), (y, state)

    found, (y, state) = jax.grad(mine, (0, 1), has_aux=True)(params, x)
    expected, (all_y, all_state) = jax.grad(flax, (0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(y[rows], all_y, rtol=1e-4, atol=1e-5)
    for one, other in ((found, expected), (state, all_state)):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    moved = not np.allclose(state["batch_stats"]["mean"], stats["mean"])
    assert moved == train


def test_weights_reach_the_norms_of_a_module_and_are_refused_where_none_takes_them():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train, weights=None):
            return WeightedBatchNorm()(x, use_running_average=not train, weights=weights)

    model, weights = Model(), jnp.array([5.0, 1, 1, 1, 1, 1])
    variables = model.init(jax.random.key(0), INPUTS, train=False)
    params, apply_fn = variables.pop("params"), from_linen(model)
    plain, _ = apply_fn(params, variables, INPUTS, train=True, rng=None)
    weighted, _ = apply_fn(params, variables, INPUTS, train=True, rng=None, weights=weights)
    np.testing.assert_allclose(np.average(weighted, axis=0, weights=weights), 0, atol=1e-5)
    assert np.abs(np.average(plain, axis=0, weights=weights)).max() > 0.05
    other, params, state = linen_parts()
    with pytest.raises(ValueError, match=r"weights were given but LinenModel\.__call__ takes none"):
        other(params, state, INPUTS, train=True, rng=None, weights=weights)


class Tail(nn.Module):
    """A model that ends in a layer that sums over several axes."""

    axis: tuple[int, ...] | int
    features: tuple[int, ...] | int = 3

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral(self.features, axis=self.axis)(nn.relu(nn.Dense(5)(x)))


@pytest.mark.parametrize("axis", [(-2, -1), (1, 2), (2, 1), 1])
def test_a_last_layer_that_sums_over_several_axes_has_the_gradient_of_its_kernel(axis):
    rng = np.random.default_rng(0)
    x, labels = np.float32(rng.normal(size=(6, 5, 2))), np.arange(6) % 3
    model = Tail(axis)
    params = model.init(jax.random.key(0), x)["params"]
    apply_fn, examples = from_linen(model), Examples(jnp.asarray(x), jnp.asarray(labels))
    if axis == 1:  # logits [b, 5, c] of five positions
        examples = examples._replace(labels=jnp.asarray(rng.integers(0, 3, (6, 5))))
    found, _ = default_gradients(apply_fn)(params, {}, examples)
    if isinstance(found, Factored):
        found = jnp.einsum("bc,bd->bcd", *found).reshape(6, -1)

    def loss(last, one):
        own = {**params, "DenseGeneral_0": last}
        logits, _ = apply_fn(own, {}, one.inputs[None], train=False, rng=None)
        return cross_entropy(logits, one.labels[None])[0]

    gradients = jax.vmap(jax.grad(loss), (None, 0))(params["DenseGeneral_0"], examples)
    exact = np.concatenate([leaf.reshape(6, -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    np.testing.assert_allclose(found @ found.T, exact @ exact.T, rtol=1e-4, atol=1e-6)


def test_a_last_layer_of_several_outputs_is_compared_by_its_logits():
    x = np.float32(np.random.default_rng(0).normal(size=(6, 4)))
    model = Tail(-1, (2, 3))
    apply_fn, params = from_linen(model), model.init(jax.random.key(0), x)["params"]
    examples = Examples(jnp.asarray(x), jnp.zeros((6, 2), int))
    found, _ = default_gradients(apply_fn)(params, {}, examples)
    expected, _ = logit_gradients(apply_fn)(params, {}, examples)
    np.testing.assert_array_equal(found, expected)


def test_the_last_layer_of_nnx_may_sum_over_several_axes():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.LinearGeneral((5, 2), 3, axis=(1, 2), rngs=rngs)

        def __call__(self, x):
            return self.out(x)

    x = np.float32(np.random.default_rng(0).normal(size=(6, 5, 2)))
    model = Model(nnx.Rngs(0))
    apply_fn = from_nnx(model)
    features, logits = apply_fn.features_fn(*apply_fn.view(model), x)
    assert logits.shape == (6, 3)
    np.testing.assert_array_equal(features, x.reshape(6, 10))
