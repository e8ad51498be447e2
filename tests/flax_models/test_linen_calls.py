"""Linen modules as people write them: switches, inputs, collections and last layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from crest_jax import Examples, last_layer_gradients
from crest_jax.flax import from_linen, linen_features

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
KEY = jax.random.key(3)


class ByTrain(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class ByTraining(ByTrain):
    @nn.compact
    def __call__(self, x, *, training: bool = False):
        return super().__call__(x, training)


class ByDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.BatchNorm()(x, use_running_average=deterministic)
        return nn.Dense(2)(nn.Dropout(0.5)(x, deterministic=deterministic))


class ByBoth(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average=True, deterministic=True):
        x = nn.BatchNorm()(x, use_running_average=use_running_average)
        return nn.Dense(2)(nn.Dropout(0.5)(x, deterministic=deterministic))


class TrainField(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not self.train)(x))


class DeterministicField(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=self.deterministic)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=self.deterministic)(x))


class FieldOrArgument(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic: bool | None = None):
        off = nn.merge_param("deterministic", self.deterministic, deterministic)
        x = nn.BatchNorm(use_running_average=off)(x)
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=off)(x))


SWITCHED = [
    ByTrain(), ByTraining(), ByDeterministic(), ByBoth(), TrainField(), TrainField(train=False),
    DeterministicField(), DeterministicField(deterministic=False), FieldOrArgument(),
    nn.Sequential([nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(2)]),
    nn.Sequential([nn.Sequential([nn.BatchNorm()]), nn.Dropout(0.5), nn.Dense(2)]),
]  # fmt: skip


def parameters():
    variables = {
        "params": {"scale": np.float32([1.5, 2, 0.5]), "bias": np.float32([1, 2, 3])},
        "batch_stats": {"mean": np.float32([3, 1, 2]), "var": np.float32([2, 3, 4])},
    }
    kernel = np.arange(6, dtype=np.float32).reshape(3, 2)
    return variables, {"kernel": kernel, "bias": np.float32([0.5, -1])}


def variables_of(module):
    norm, dense = parameters()
    if not isinstance(module, nn.Sequential):
        params = {"BatchNorm_0": norm["params"], "Dense_0": dense}
        return params, {"batch_stats": {"BatchNorm_0": norm["batch_stats"]}}
    inner = isinstance(module.layers[0], nn.Sequential)
    params, stats = (
        {"layers_0": {"layers_0": norm[part]} if inner else norm[part]}
        for part in ("params", "batch_stats")
    )
    return {**params, "layers_2": dense}, {"batch_stats": stats}


@pytest.mark.parametrize("number", range(len(SWITCHED)))
def test_every_form_of_the_switch_has_its_sense(number):
    module = SWITCHED[number]
    params, state = variables_of(module)
    apply_fn, (norm, dense) = from_linen(module), parameters()
    logits, same = apply_fn(params, state, X, train=False, rng=None)
    stats, own = norm["batch_stats"], norm["params"]
    hidden = (X - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * own["scale"] + own["bias"]
    np.testing.assert_allclose(logits, hidden @ dense["kernel"] + dense["bias"], rtol=1e-5, atol=1e-4)
    assert same is state
    drawn, after = apply_fn(params, state, X, train=True, rng=KEY)
    mean = jax.tree.leaves(after)[0]
    np.testing.assert_allclose(mean, 0.99 * stats["mean"] + 0.01 * X.mean(axis=0), rtol=1e-5)
    hidden = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5) * own["scale"] + own["bias"]
    undropped = hidden @ dense["kernel"] + dense["bias"]
    assert not np.allclose(drawn, undropped, atol=0.1)  # Dropout is on
    other, _ = apply_fn(params, state, X, train=True, rng=jax.random.key(8))
    assert not np.allclose(drawn, other)


def test_what_is_frozen_in_a_sequential_stays_so_and_what_is_shared_stays_shared():
    shared = nn.BatchNorm()
    frozen = nn.BatchNorm(use_running_average=True)
    module = nn.Sequential([shared, shared, frozen])
    stats = {"mean": np.float32([3, 1, 2]), "var": np.ones(3, np.float32)}
    params = {name: {"scale": np.ones(3), "bias": np.zeros(3)} for name in ("layers_0", "layers_2")}
    state = {"batch_stats": {"layers_0": stats, "layers_2": stats}}
    _, after = from_linen(module)(params, state, X, train=True, rng=None)
    assert set(after["batch_stats"]) == {"layers_0", "layers_2"}
    np.testing.assert_array_equal(after["batch_stats"]["layers_2"]["mean"], stats["mean"])
    # Normalised twice by one layer, the second time about a mean of zero.
    expected = 0.99 * (0.99 * stats["mean"] + 0.01 * X.mean(axis=0))
    np.testing.assert_allclose(after["batch_stats"]["layers_0"]["mean"], expected, rtol=1e-4)


def test_a_module_without_a_switch_needs_none_and_equal_ones_are_equal():
    module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    params = module.init(KEY, X)["params"]
    for train in (False, True):
        logits, state = from_linen(module)(params, {}, X, train=train, rng=None)
        np.testing.assert_array_equal(logits, module.apply({"params": params}, X))
        assert state == {}
    assert from_linen(ByTrain()) == from_linen(ByTrain())
    assert hash(from_linen(ByTrain())) == hash(from_linen(ByTrain()))
    assert from_linen(ByTrain()) != from_linen(ByTrain(), rngs=())


class Tree(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        table = self.param("table", nn.initializers.normal(), (5, 2))
        hidden = table[inputs["tokens"]] * inputs["mask"][..., None]
        return hidden.sum(axis=1)


class Named(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask=None, deterministic=True):
        del deterministic
        return Tree(name="tree")(
            {"tokens": tokens, "mask": jnp.ones_like(tokens) if mask is None else mask}
        )


def test_inputs_are_any_tree_or_arguments_by_name():
    tokens, mask = np.array([[1, 2, 0], [3, 0, 0]]), np.array([[1, 1, 0], [1, 0, 0]])
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    inputs = {"tokens": tokens, "mask": mask}
    expected = np.stack([table[1] + table[2], table[3]])
    logits, _ = from_linen(Tree())({"table": table}, {}, inputs, train=False, rng=None)
    np.testing.assert_array_equal(logits, expected)
    apply_fn, params = from_linen(Named(), keyword_inputs=True), {"tree": {"table": table}}
    for train in (False, True):
        logits, _ = jax.jit(apply_fn, static_argnames="train")(params, {}, inputs, train=train, rng=KEY)
        np.testing.assert_array_equal(logits, expected)
    logits, _ = apply_fn(params, {}, {"tokens": tokens[:1, :1]}, train=False, rng=None)
    np.testing.assert_array_equal(logits, table[1:2])


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        if train:
            self.sow("losses", "penalty", jnp.sum(x**2))
        self.sow("intermediates", "hidden", x)
        return nn.Dense(2)(x)


@pytest.mark.parametrize("kept", [(), ("losses",), ("losses", "intermediates")])
def test_collections_of_training_alone_break_nothing(kept):
    variables = Sowing().init(KEY, X[:1], train=True, mutable=True)
    params, state = variables["params"], {name: variables[name] for name in ("batch_stats", *kept)}
    apply_fn = from_linen(Sowing())
    assert apply_fn(params, state, X, train=False, rng=None)[1] is state

    def body(state, key):
        return apply_fn(params, state, X, train=True, rng=key)[::-1]

    after, _ = jax.lax.scan(body, state, jax.random.split(KEY, 2))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    changed = after["batch_stats"]["norm"]["mean"] != state["batch_stats"]["norm"]["mean"]
    assert bool(changed.all())


class Deep(nn.Module):
    finish: Any = None
    wrap: Any = staticmethod(lambda kind: kind)

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(5, name="hidden")(x))
        logits = self.wrap(nn.Dense)(2, name="out")(nn.Dropout(0.5, deterministic=not train)(x))
        return logits if self.finish is None else self.finish(logits)


@pytest.mark.parametrize("layer", [None, "out"])
@pytest.mark.parametrize(
    "module",
    [Deep(), Deep(finish=lambda z: z.astype(jnp.float32)), Deep(wrap=nn.remat), Deep(wrap=nn.jit)],
    ids=["plain", "cast", "remat", "jit"],
)
def test_the_last_layer_reads_its_features(layer, module):
    params = Deep().init(KEY, X, train=False)["params"]
    features, logits = jax.jit(linen_features(module, layer))(params, {}, X)
    own = jax.tree.map(np.asarray, params["hidden"])
    hidden = np.maximum(X @ own["kernel"] + own["bias"], 0)
    np.testing.assert_allclose(features, hidden, rtol=1e-5, atol=1e-6)
    expected = Deep().apply({"params": params}, X, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_last_layer_gradients_are_those_of_the_last_layers_parameters():
    params = Deep().init(KEY, X, train=False)["params"]
    labels = jnp.array([0, 1, 1, 0])
    found, _ = last_layer_gradients(linen_features(Deep()))(params, {}, Examples(X, labels))

    def loss(out, x, label):
        logits = Deep().apply({"params": {**params, "out": out}}, x[None], train=False)[0]
        return jax.nn.logsumexp(logits) - logits[label]

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params["out"], X, labels)
    outer = np.einsum("nc,nd->ndc", found.left, found.right)
    kernel = gradients["kernel"]
    np.testing.assert_allclose(outer[:, : kernel.shape[1]], kernel, rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 3, name="embed")
        return embed.attend(nn.Dense(3)(embed(tokens)))


def test_a_tied_embedding_is_a_last_layer_over_every_token():
    tokens = np.array([[1, 2], [3, 4]])
    params = Tied().init(KEY, tokens)["params"]
    features, logits = linen_features(Tied())(params, {}, tokens)
    assert features.shape == (2, 2, 3)
    np.testing.assert_allclose(features @ params["embed"]["embedding"].T, logits, rtol=1e-5, atol=1e-6)


class OpenEnded(nn.Module):
    @nn.compact
    def __call__(self, x, **options):
        return nn.Dense(2)(x)


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x, mask, train):
        return nn.Dense(2)(x * mask)


class NoInputs(nn.Module):
    def __call__(self):
        return 1


class Undeclared(nn.Module):
    layer: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.layer(x))


class Pair(nn.Module):
    def __call__(self, x):
        return x

    def features(self, x):
        return x


def call(module, variables=None, *, train=False, rng=None, x=X, **options):
    variables = variables or {"params": {"Dense_0": parameters()[1]}}
    state = {name: value for name, value in variables.items() if name != "params"}
    return from_linen(module, **options)(variables["params"], state, x, train=train, rng=rng)


DENSE = parameters()[1]
STATS = {"layers_0": parameters()[0]["batch_stats"]}
WRONG = {
    "module is the class ByTrain but must be a Linen module": lambda: from_linen(ByTrain),
    "module is of the type int but must be a Linen module": lambda: from_linen(3),
    "module is a Dense that is bound": lambda: from_linen(nn.Dense(2).bind({"params": DENSE})),
    "rngs is 'dropout' but must be a sequence": lambda: from_linen(ByTrain(), rngs="dropout"),
    "OpenEnded.__call__ takes .*kwargs but names no switch": lambda: from_linen(OpenEnded()),
    "TwoInputs.__call__ also needs mask": lambda: from_linen(TwoInputs()),
    "NoInputs.__call__ takes .* but its first argument": lambda: from_linen(NoInputs()),
    "FieldOrArgument has deterministic=True as a field": lambda: from_linen(FieldOrArgument(True)),
    "layer 1 of a Sequential, ByTrain, takes train": lambda: from_linen(
        nn.Sequential([nn.Dense(2), ByTrain()])
    ),
    "a Sequential of 0 layers": lambda: from_linen(nn.Sequential([])),
    "rng is None but Deep.__call__ draws random": lambda: call(
        Deep(),
        {"params": {"hidden": {"kernel": np.ones((3, 5)), "bias": np.ones(5)}, "out": {}}},
        train=True,
    ),
    "reads a random stream that rngs does not name": lambda: call(
        Undeclared(nn.Dropout(0.5, deterministic=False)), train=True, rng=KEY, rngs=("noise",)
    ),
    "draws random numbers with train=False": lambda: call(
        Undeclared(nn.Dropout(0.5, deterministic=False))
    ),
    "changes its state with train=False": lambda: call(
        nn.Sequential([nn.BatchNorm(use_running_average=False)]),
        {"params": {"layers_0": parameters()[0]["params"]}, "batch_stats": STATS},
    ),
    "model_state holds nothing but .* needs more": lambda: call(
        ByTrain(), {"params": variables_of(ByTrain())[0]}
    ),
    "inputs are a float32 array of shape .* but with keyword_inputs": lambda: call(
        Named(), keyword_inputs=True
    ),
    "inputs hold 'masks' but Named.__call__ takes as inputs only tokens, mask": lambda: call(
        Named(), x={"tokens": X, "masks": X}, keyword_inputs=True
    ),
    "inputs hold 'deterministic' but": lambda: call(
        Named(), x={"tokens": X, "deterministic": True}, keyword_inputs=True
    ),
    "inputs hold mask but Named.__call__ also needs tokens": lambda: call(
        Named(), x={"mask": X}, keyword_inputs=True
    ),
    "weights were given but ByTrain.__call__ takes none": lambda: from_linen(ByTrain())(
        *variables_of(ByTrain()), X, train=True, rng=KEY, weights=jnp.ones(4)
    ),
    "Pair has no method 'last'": lambda: linen_features(Pair(), method="last"),
    "features returned .* but must return a pair": lambda: linen_features(Pair(), method="features")(
        {}, {}, X
    ),
    "layer is 'out' and method 'features' but only one": lambda: linen_features(
        Pair(), "out", method="features"
    ),
    "layer is 3 but must be a name": lambda: linen_features(Pair(), 3),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_uses_are_told_in_one_sentence(sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        WRONG[sentence]()
    message = str(caught.value)
    assert message.endswith(".")
    assert " but " in message
    assert "; " in message


@pytest.mark.parametrize(
    ("module", "layer", "sentence"),
    [
        (Deep(), "hidden", r"layer 'hidden' returns shape \(4, 5\) but the model \(4, 2\)"),
        (Deep(), "head", "layer is 'head' but Deep.__call__ calls no such layer"),
        (Deep(finish=jax.nn.log_softmax), None, "returns other values than the model"),
        (Deep(finish=lambda z: z[:, ::-1]), "out", "returns other values than the model"),
        (Pair(), None, "calls no such layer"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_a_layer_that_is_not_the_last_is_refused_traced_or_not(module, layer, sentence, traced):
    params = Deep().init(KEY, X, train=False)["params"]
    function = linen_features(module, layer)
    with pytest.raises(ValueError, match=sentence):
        (jax.jit(function) if traced else function)(params, {}, X)
