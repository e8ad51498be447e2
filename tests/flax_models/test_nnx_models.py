"""NNX models as people write and train them, through the live view."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy
from crest_jax.flax import NNXWeightedBatchNorm, WeightedBatchNorm, from_nnx, nnx_features

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
KEY = jax.random.key(3)


class Plain(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.again = self.blocks[0]  # tied
        self.heads = nnx.Dict(main=nnx.Linear(4, 3, rngs=rngs))

    def __call__(self, x):
        for block in (*self.blocks, self.again):
            x = jnp.tanh(block(x))
        return self.heads["main"](x)


class Full(nnx.Module):
    def __init__(self, rngs, rate=0.5):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = NNXWeightedBatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, weights=None):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x), weights=weights))))


class ByArgument(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, train, rngs=None):
        x = self.norm(x, use_running_average=not train)
        return self.dropout(x, deterministic=not train, rngs=rngs)


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        return self.body(x)


def test_a_live_model_is_trained_in_place_and_served_as_it_is_now():
    model = Full(nnx.Rngs(0), rate=0.0)
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    apply_fn = from_nnx(model)
    first = apply_fn.view(model)
    frozen = jax.tree.map(np.array, first)

    @nnx.jit
    def train_step(model, optimizer):
        def loss(model):
            return cross_entropy(model(X), labels).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(3):
        train_step(model, optimizer)
    params, state = apply_fn.view(model)
    jax.tree.map(np.testing.assert_array_equal, frozen, jax.tree.map(np.asarray, first))
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves((params, state)), strict=True):
        assert old.shape == new.shape
    assert not np.allclose(first[0]["head"]["kernel"], params["head"]["kernel"])
    assert not np.allclose(first[1]["norm"]["mean"], state["norm"]["mean"])
    served, _ = apply_fn(params, state, X, train=False, rng=None)
    model.eval()
    np.testing.assert_allclose(served, model(X), rtol=1e-5, atol=1e-6)
    assert type(params) is dict
    again = apply_fn.view(model)  # eval() is no change of the model
    jax.tree.map(np.testing.assert_array_equal, again, (params, state))


@pytest.mark.parametrize("form", ["view", pytest.param("states", marks=pytest.mark.slow)])
def test_the_anchor_outlives_steps_that_donate_the_model(form):
    """A train step that deletes its buffers, and an optimizer in place, change no anchor."""
    model = Full(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    apply_fn = from_nnx(model)
    x = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    source = ArraySource(x, np.arange(40) % 3)
    config = CrestConfig.paper(num_examples=40, steps=20, batch_size=6)
    region = dataclasses.replace(config.region, probe_size=12)
    selector = crest(apply_fn, source, dataclasses.replace(config, region=region, exclusion=None))

    def now():
        if form == "view":
            return apply_fn.view(model)
        return nnx.split(model, nnx.Param, ...)[1:]

    @nnx.jit(donate_argnums=(0, 1))
    def train_step(model, optimizer, batch):
        def loss(model):
            losses = cross_entropy(model(batch.inputs, batch.weights), batch.labels)
            return jnp.average(losses, weights=batch.weights)

        optimizer.update(model, nnx.grad(loss)(model))

    state = selector.init(KEY, *now())
    state, event = selector.refresh(state, *now())
    assert event.began_region
    before = jax.tree.leaves(jax.tree.map(np.array, state.region.anchor))
    for _ in range(2):
        old = model.head.kernel.get_value()
        state, batch = selector.next_batch(state)
        train_step(model, optimizer, batch)
        state, _ = selector.refresh(state._replace(next_check=99), *now())
    assert old.is_deleted()  # donation was real
    after = jax.tree.leaves(state.region.anchor)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    trained = jax.tree.leaves(now()[0])
    assert not all(np.allclose(one, other) for one, other in zip(before, trained, strict=True))
    state, event = selector.refresh(state._replace(next_check=state.step), *now())
    assert np.isfinite(event.rho)


def test_lists_dicts_and_tied_layers():
    model = Plain(nnx.Rngs(0))
    apply_fn = from_nnx(model)
    params, state = apply_fn.view(model)
    assert state == {}
    assert len(jax.tree.leaves(params)) == 6  # the tied layer counts once
    logits, same = apply_fn(params, state, X, train=True, rng=None)
    np.testing.assert_allclose(logits, model(X), rtol=1e-5, atol=1e-6)
    assert same == {}

    def loss(params):
        return apply_fn(params, {}, X, train=False, rng=None)[0].sum()

    gradient = jax.grad(loss)(params)
    own = nnx.grad(lambda model: model(X).sum())(model)
    expected = nnx.to_pure_dict(nnx.state(own))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, expected
    )


def forms(model):
    """The ways in which people hold a model's parameters and the rest."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    yield params, rest
    yield nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    yield nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    params, state = from_nnx(model).view(model)
    restored = serialization.msgpack_restore(serialization.to_bytes({"params": params, "state": state}))
    yield restored["params"], restored["state"]


@pytest.mark.parametrize("kind", [Full, Plain])
def test_states_are_taken_in_the_forms_that_people_use_and_come_back_so(kind):
    model = kind(nnx.Rngs(0))
    apply_fn = from_nnx(model)
    params, state = apply_fn.view(model)
    expected, after = apply_fn(params, state, X, train=True, rng=KEY)
    for own, rest in forms(model):
        logits, new = jax.jit(apply_fn, static_argnames="train")(own, rest, X, train=True, rng=KEY)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        assert jax.tree.structure(new) == jax.tree.structure(rest)
        if kind is Full:
            mean = new["norm"]["mean"]
            np.testing.assert_allclose(
                jnp.asarray(mean[...]), after["norm"]["mean"], rtol=1e-5, atol=1e-6
            )
        assert apply_fn(own, rest, X, train=False, rng=None)[1] is rest


def test_arguments_of_the_call_and_random_streams_given_to_it():
    model = ByArgument(nnx.Rngs(0))
    apply_fn = from_nnx(model, wrt=nnx.Param)
    params, state = apply_fn.view(model)
    one, after = apply_fn(params, state, X, train=True, rng=KEY)
    two, _ = apply_fn(params, state, X, train=True, rng=jax.random.key(9))
    assert not np.allclose(one, two)
    assert not np.allclose(after["norm"]["mean"], 0)
    np.testing.assert_allclose(
        apply_fn(params, state, X, train=False, rng=None)[0], X / np.sqrt(1 + 1e-5), rtol=1e-5
    )


def test_only_the_parameters_that_are_trained_can_be_named():
    model = Adapted(nnx.Rngs(0))
    params, state = from_nnx(model, wrt=nnx.LoRAParam).view(model)
    names = {str(path[-1].key) for path, _ in jax.tree.leaves_with_path(params)}
    assert names == {"lora_a", "lora_b"}
    assert len(jax.tree.leaves(state)) == 2
    logits, _ = from_nnx(model, wrt=nnx.LoRAParam)(params, state, X, train=False, rng=None)
    np.testing.assert_allclose(logits, model(X), rtol=1e-5, atol=1e-6)


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        self.sow(nnx.Intermediate, "seen", x)
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_sown_values_are_no_state():
    model = Sowing(nnx.Rngs(0))
    apply_fn = from_nnx(model)
    model(X)
    assert apply_fn.view(model)[1] == {}
    later = from_nnx(model)  # a model that sowed already
    params, state = later.view(model)
    assert apply_fn(params, state, X, train=True, rng=None)[1] == {}
    _, own, rest = nnx.split(model, nnx.Param, ...)
    assert jax.tree.structure(later(own, rest, X, train=True, rng=None)[1]) == jax.tree.structure(rest)


def test_equal_models_are_equal_so_that_they_share_what_is_compiled():
    assert from_nnx(Full(nnx.Rngs(0))) == from_nnx(Full(nnx.Rngs(1)))
    assert hash(from_nnx(Full(nnx.Rngs(0)))) == hash(from_nnx(Full(nnx.Rngs(1))))
    assert from_nnx(Full(nnx.Rngs(0))) != from_nnx(Full(nnx.Rngs(0), rate=0.1))


def test_inputs_are_any_tree_or_arguments_by_name():
    class Tree(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, inputs):
            x, (scale,) = inputs["x"], inputs["more"]
            return self.layer(x) * scale

    class Named(Tree):
        def __call__(self, x, scale=2.0, deterministic=True):
            return super().__call__({"x": x, "more": (scale,)})

    model = Tree(nnx.Rngs(0))
    apply_fn = from_nnx(model)
    expected = 2 * model.layer(X)
    params, _ = apply_fn.view(model)
    logits, _ = apply_fn(params, {}, {"x": X, "more": (2.0,)}, train=False, rng=None)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    by_name = from_nnx(Named(nnx.Rngs(0)), keyword_inputs=True)
    for inputs in ({"x": X}, {"x": X, "scale": 2.0}):
        np.testing.assert_allclose(
            by_name(params, {}, inputs, train=True, rng=None)[0], expected, rtol=1e-5
        )


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 2, 3)])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_weighted_norm_of_nnx_is_that_of_linen(shape, scaled):
    rng = np.random.default_rng(2)
    x, weights = np.float32(rng.normal(1, 2, shape)), jnp.array([1.0, 3, 2, 1, 5])
    mine = NNXWeightedBatchNorm(3, momentum=0.7, use_scale=scaled, use_bias=scaled, rngs=nnx.Rngs(0))
    params = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
    if scaled:
        params = {name: np.float32(rng.uniform(0.5, 2, 3)) for name in params}
        mine.scale[...], mine.bias[...] = params["scale"], params["bias"]
    stats = {name: np.float32(rng.uniform(0.5, 2, 3)) for name in ("mean", "var")}
    mine.mean[...], mine.var[...] = stats["mean"], stats["var"]
    expected, state = WeightedBatchNorm(momentum=0.7).apply(
        {"params": params, "batch_stats": stats}, x, False, weights, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(mine(x, weights=weights), expected, rtol=1e-4, atol=1e-5)
    for name, value in state["batch_stats"].items():
        np.testing.assert_allclose(getattr(mine, name)[...], value, rtol=1e-5)
    plain = nnx.BatchNorm(3, momentum=0.7, use_scale=scaled, use_bias=scaled, rngs=nnx.Rngs(0))
    fresh = NNXWeightedBatchNorm(3, momentum=0.7, use_scale=scaled, use_bias=scaled, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(fresh(x), plain(x))
    mine.eval()
    np.testing.assert_array_equal(mine(x, weights=weights), mine(x))


def test_weights_reach_the_norms_in_training_alone():
    model = Full(nnx.Rngs(0), rate=0.0)
    apply_fn, weights = from_nnx(model), jnp.array([5.0, 1, 1, 1, 1, 1])
    parts = apply_fn.view(model)
    plain, weighted = (
        apply_fn(*parts, X, train=True, rng=KEY, weights=given)[1]["norm"]["mean"]
        for given in (None, weights)
    )
    hidden = np.asarray(model.hidden(X))
    np.testing.assert_allclose(plain, 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-5)
    expected = 0.1 * np.average(hidden, axis=0, weights=weights)
    np.testing.assert_allclose(weighted, expected, rtol=1e-4, atol=1e-5)
    given = apply_fn(*parts, X, train=False, rng=None, weights=weights)[0]
    np.testing.assert_array_equal(given, apply_fn(*parts, X, train=False, rng=None)[0])


@pytest.mark.parametrize("layer", [None, "heads/main"])
def test_the_last_layer_reads_its_features(layer):
    model = Plain(nnx.Rngs(0))
    params, state = from_nnx(model).view(model)
    features, logits = jax.jit(nnx_features(model, layer))(params, state, X)
    head = jax.tree.map(np.asarray, params["heads"]["main"])
    own = np.asarray(features) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, model(X), rtol=1e-5, atol=1e-6)
    assert type(model.heads["main"]) is nnx.Linear


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.mix = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, tokens):
        return self.embed.attend(self.mix(self.embed(tokens)))

    def both(self, tokens):
        x = self.mix(self.embed(tokens))
        return x, self.embed.attend(x)


def test_a_tied_embedding_is_a_last_layer_and_a_method_may_say_so():
    model, tokens = Tied(nnx.Rngs(0)), np.array([[1, 2, 3]])
    params, state = from_nnx(model).view(model)
    for options in ({}, {"layer": "embed"}, {"method": "both"}):
        features, logits = nnx_features(model, **options)(params, state, tokens)
        table = np.asarray(params["embed"]["embedding"])
        np.testing.assert_allclose(features @ table.T, logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits, model(tokens), rtol=1e-5, atol=1e-6)


class Remat(Plain):
    def __call__(self, x):
        return self.heads["main"](nnx.remat(lambda layer, x: layer(x))(self.again, x))


def test_layers_inside_a_transformation_are_not_taken_for_the_last():
    model = Remat(nnx.Rngs(0))
    params, state = from_nnx(model).view(model)
    features, logits = jax.jit(nnx_features(model))(params, state, X)
    np.testing.assert_allclose(features, model.again(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, model(X), rtol=1e-5, atol=1e-6)


class NoCall(nnx.Module):
    pass


class Empty(nnx.Module):
    def __call__(self, x):
        return x


class TwoInputs(Plain):
    def __call__(self, x, mask):
        return super().__call__(x * mask)


def parts_of(kind=Full):
    model = kind(nnx.Rngs(0))
    apply_fn = from_nnx(model)
    return apply_fn, *apply_fn.view(model)


def applied(params=None, state=None, kind=Full, **options):
    apply_fn, own, rest = parts_of(kind)
    options = {"train": False, "rng": None, **options}
    return apply_fn(own if params is None else params, rest if state is None else state, X, **options)


def features(layer=None, kind=Plain, **options):
    _, params, state = parts_of(kind)
    return nnx_features(kind(nnx.Rngs(0)), layer, **options)(params, state, X)


def weighted(**options):
    norm = NNXWeightedBatchNorm(4, axis=options.pop("axis", -1), rngs=nnx.Rngs(0))
    return norm(X, **{"weights": jnp.ones(6), **options})


WRONG = {
    "model is the class Full but must be an NNX model": lambda: from_nnx(Full),
    "model is of the type function but must be an NNX model": lambda: from_nnx(lambda x: x),
    "NoCall has no __call__ but": lambda: from_nnx(NoCall()),
    "Empty has no variables for wrt=.* but": lambda: from_nnx(Empty()),
    "TwoInputs.__call__ also needs mask but": lambda: from_nnx(TwoInputs(nnx.Rngs(0))),
    "Full.__call__ draws random numbers in training": lambda: applied(train=True),
    "weights were given but Plain.__call__ takes none": lambda: applied(
        kind=Plain, train=True, weights=jnp.ones(6)
    ),
    "params lack head/bias, head/kernel, hidden/bias and 3 more but": lambda: applied(params={}),
    "model_state lack norm/mean, norm/var but": lambda: applied(state={}),
    "params hold norm/mean, norm/var but": lambda: applied(
        params=nnx.state(Full(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat))
    ),
    "model_state hold head/bias": lambda: applied(state=nnx.state(Full(nnx.Rngs(0)))),
    "params lack .* but": lambda: applied(params=Full(nnx.Rngs(0))),
    "view was given a model of the type dict but needs the live NNX model": lambda: parts_of()[0].view(
        {"a": jnp.ones(3)}
    ),
    "the model differs .* in again/bias, .* but must have the same variables": lambda: parts_of()[
        0
    ].view(Plain(nnx.Rngs(0))),
    "layer is 'hidden' but must be the path of a layer of Plain; choose from .*heads/main": lambda: (
        features("hidden")
    ),
    "layer is 'blocks/7' but": lambda: features("blocks/7"),
    "layer 'hidden' returns shape .* but the model .*in call order: hidden, head": lambda: features(
        "hidden", Full
    ),
    "layer 'None' returns other values than the model but": lambda: features(kind=Reversed),
    "Plain has no method 'last' but": lambda: features(method="last"),
    "layer is 'a' and method 'b' but only one": lambda: features("a", method="b"),
    "weights come with mask=.* but need mask=None": lambda: weighted(mask=jnp.ones((6, 1), bool)),
    "weights come with .*axis=0 but need": lambda: weighted(axis=0),
    "use_running_average is a float32 array .* but must be True or False; pass weights by": lambda: (
        NNXWeightedBatchNorm(4, rngs=nnx.Rngs(0))(X, jnp.ones(6))
    ),
    "weights have shape .* but must have shape": lambda: weighted(weights=jnp.ones(5)),
    "weights are -1 at least and sum to 4 but must be": lambda: weighted(
        weights=jnp.ones(6).at[0].set(-1.0)
    ),
    "weights are 0 at least and sum to 0 but must be": lambda: weighted(weights=jnp.zeros(6)),
}


class Reversed(Plain):
    def __call__(self, x):
        return super().__call__(x)[:, ::-1]


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_uses_are_told_in_one_sentence(sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        WRONG[sentence]()
    message = str(caught.value)
    assert message.endswith(".")
    assert " but " in message
    assert "; " in message


def test_a_weighted_norm_far_from_zero_keeps_its_digits_where_asked():
    norm = NNXWeightedBatchNorm(1, use_fast_variance=False, rngs=nnx.Rngs(0))
    x = jnp.float32(1e4 + np.random.default_rng(0).normal(size=(64, 1)))
    found = norm(x, weights=jnp.ones(64))
    np.testing.assert_allclose(found, norm(x), atol=1e-3)
    assert float(found.std()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("scaled", [True, False])
def test_weighted_norms_return_the_number_types_of_flax(scaled):
    x, weights = jnp.ones((4, 3), jnp.bfloat16), jnp.ones(4)
    own = {"use_scale": scaled, "use_bias": scaled, "rngs": nnx.Rngs(0)}
    mine, plain = NNXWeightedBatchNorm(3, **own), nnx.BatchNorm(3, **own)
    assert mine(x, weights=weights).dtype == mine(x).dtype == plain(x).dtype
    key = jax.random.key(0)
    mine, _ = WeightedBatchNorm().init_with_output(key, x, False, weights)
    plain, _ = nn.BatchNorm(use_running_average=False).init_with_output(key, x)
    assert mine.dtype == plain.dtype == jnp.float32
