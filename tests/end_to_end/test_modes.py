"""JAX's modes: every method draws, selects and trains as in the ordinary one, in its own types."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_settings import exclusion, settings

import crest_jax as cj
from crest_jax import baselines, gradients

N, BATCH, SUBSET, STEPS, CLASSES = 60, 6, 12, 10, 3
RNG = np.random.default_rng(0)
LABELS = RNG.choice(CLASSES, N, p=[0.5, 0.3, 0.2])
INPUTS = np.float32(RNG.normal(size=(N, 4)) + LABELS[:, None])
WEIGHTS = np.float32(RNG.normal(size=(4, 5))), np.float32(RNG.normal(size=(5, CLASSES)))


def features(params, model_state, inputs):
    inner = jnp.tanh(inputs @ params["body"])
    return inner, inner @ params["head"]


def model(params, model_state, inputs, *, train, rng):
    return features(params, model_state, inputs)[1], model_state


@jax.jit
def step(params, batch):
    def loss(params):
        losses = cj.cross_entropy(features(params, {}, batch.inputs)[1], batch.labels)
        return gradients.weighted_mean(losses, batch.weights), losses

    (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda x, g: x - 0.1 * g, params, gradient), losses


def crest(source, embed_fn=None, pruning=None, **options):
    config = settings(
        batch_size=BATCH, subset_size=SUBSET, probe_size=SUBSET, max_coresets=3, max_interval=3,
        tau=0.01, exclusion={"threshold": 0.9, "window": 3} | (pruning or {}), **options,
    )  # fmt: skip
    return cj.crest(model, source, config, embed_fn=embed_fn)


def sketch():
    return cj.sketched_gradients(jax.random.key(4), model, 8)


METHODS = {
    "stratified": lambda source: cj.stratified_batches(source, BATCH),
    "dynamic_pruning": lambda source: baselines.dynamic_pruning(
        source, BATCH, exclusion(threshold=0.9, window=3)
    ),
    "crest": lambda source: crest(source, select_from=2, select_until=8),
    "crest_paper": lambda source: crest(
        source, cj.last_layer_gradients(features), smoothing="paper", pruning={"keep_fraction": 0.0}
    ),
    "crest_sketch": lambda source: crest(
        source, sketch(), smoothing="none", nonfinite="skip", curvature_of="head"
    ),
    "craig": lambda source: baselines.craig(model, source, BATCH, SUBSET, every=4),
    "gradmatch": lambda source: baselines.gradmatch(features, source, BATCH, SUBSET, every=4),
    "gradmatch_batch": lambda source: baselines.gradmatch(
        features, source, BATCH, SUBSET, every=4, per_batch=True
    ),
    "glister": lambda source: baselines.glister(features, source, BATCH, SUBSET, every=4, rate=0.1),
    "el2n": lambda source: baselines.score_pruning(
        source, BATCH, SUBSET, lambda key, *trained: baselines.el2n_scores(model, *trained, source)
    ),
    "top_loss": lambda source: baselines.top_loss_batches(model, source, BATCH, SUBSET),
}


@contextlib.contextmanager
def strict():
    """No promotion of types, no NaN; ranks are not promoted in any test, see ``conftest``."""
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        yield


MODES = {
    "ordinary": contextlib.nullcontext,
    "64 bits": lambda: jax.enable_x64(True),
    "strict": strict,
}


def trained(name, source):
    """Rows and weights of every batch, and the evaluation after them."""
    params, seen = dict(zip(("body", "head"), map(jnp.asarray, WEIGHTS), strict=True)), []

    def spied(params, batch):
        kinds = (jnp.float32, jnp.int32, jnp.float32, jnp.int32)
        assert tuple(x.dtype for x in batch) == kinds
        seen.append((np.asarray(batch.indices), np.asarray(batch.weights)))
        return step(params, batch)

    selection = METHODS[name](source)
    params = cj.fit(
        selection, spied, params, key=jax.random.key(1), steps=STEPS,
        view=lambda params: (params, {}), losses=lambda losses: losses,
    )  # fmt: skip
    wide = [
        leaf.dtype
        for leaf in jax.tree.leaves(selection.init(jax.random.key(0), params, {}))
        if isinstance(leaf, jax.Array) and leaf.dtype in (np.float64, np.int64)
    ]
    assert not wide, "no state is wider than documented"
    return seen, cj.make_evaluate(model, chunk_size=25)(params, {}, source)


@functools.cache
def ordinary(name):
    return trained(name, cj.ArraySource(INPUTS, LABELS))


QUICK = {  # the others in these modes are slow
    "64 bits": {"crest", "crest_paper", "gradmatch", "top_loss"},
    "strict": {"crest", "dynamic_pruning"},
}


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(mode, name, marks=[] if name in quick else pytest.mark.slow)
        for mode, quick in QUICK.items()
        for name in METHODS
    ],
)
def test_methods_do_the_same_in_every_mode(mode, name):
    seen, found = ordinary(name)
    with MODES[mode]():
        others, other = trained(name, cj.ArraySource(INPUTS, LABELS))
    for (rows, weights), (own, own_weights) in zip(seen, others, strict=True):
        np.testing.assert_array_equal(own, rows)
        np.testing.assert_allclose(own_weights, weights, rtol=1e-3)
    assert other == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_sources_losses_and_embeddings_have_their_types_in_every_mode(mode):
    with MODES[mode]():
        sources = cj.ArraySource(INPUTS, LABELS), cj.HostSource(INPUTS, LABELS.astype(np.uint8))
        params = dict(zip(("body", "head"), map(jnp.asarray, WEIGHTS), strict=True))
        for source in sources:
            rows = np.arange(5)
            for embed in (cj.logit_gradients(model), cj.last_layer_gradients(features), sketch()):
                found = gradients.embed_rows(jax.jit(embed), params, {}, source, rows)
                assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
            taken = source.take(jnp.arange(5, dtype=jnp.int32))
            assert (taken.inputs.dtype, taken.labels.dtype) == (jnp.float32, jnp.int32)
        for kind in (jnp.bfloat16, jnp.float16, jnp.float32):
            losses = cj.cross_entropy(jnp.ones((5, CLASSES), kind), LABELS[:5])
            assert losses.dtype == jnp.float32
            assert gradients.weighted_mean(losses.astype(kind), jnp.arange(1, 6)).dtype == jnp.float32


def test_a_source_keeps_64_bits_where_jax_has_them():
    numbers = np.arange(6) * 2**40
    with jax.enable_x64(True):
        for kind in (cj.ArraySource, cj.HostSource):
            found = kind(numbers, np.zeros(6, int)).take(jnp.array([5])).inputs
            assert found.tolist() == [5 * 2**40]


def test_a_wrong_label_is_what_debug_nans_finds():
    with jax.debug_nans(True):
        loss = jax.jit(lambda z, y: cj.cross_entropy(z, y).sum())
        assert float(loss(jnp.zeros((2, 3)), jnp.array([0, 2]))) == pytest.approx(2 * np.log(3))
        # JAX runs what gave a NaN again, step by step, where the label has a value.
        with pytest.raises(ValueError, match="label 3 has no logit"):
            loss(jnp.zeros((2, 3)), jnp.array([0, 3]))
