"""Coresets that are chosen just before their step: of which rows, and at which parameters."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_settings import exclusion, fresh_settings, settings

from crest_jax import (
    ArraySource,
    crest,
    cross_entropy,
    fit,
    last_layer_gradients,
    logit_gradients,
    random_batches,
    stratified_batches,
)
from crest_jax.algorithm import crest as algorithm
from crest_jax.algorithm.compiled import Form, Problem, _choose
from crest_jax.coresets.mini_batch import class_side, medoids
from crest_jax.flax import from_linen, linen_features
from crest_jax.gradients.embeddings import default_gradients

CLASSES, FEATURES, COUNT = 3, 5, 90
RNG = np.random.default_rng(0)
LABELS = np.arange(COUNT) % CLASSES
INPUTS = np.float32(RNG.normal(size=(COUNT, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[LABELS])


def linear(params, state, inputs, *, train, rng):
    return inputs @ params, state


def params_at(step):
    return jnp.asarray(0.1 * (step + 1) * np.cos(np.arange(FEATURES * CLASSES)), jnp.float32).reshape(
        FEATURES, CLASSES
    )


def followed(config, steps=30, inputs=INPUTS):
    """The batches and events of a loop whose parameters move at every step, and its last state."""
    selector = crest(linear, ArraySource(inputs, LABELS), config)
    state, seen = selector.init(jax.random.key(0), params_at(0), {}), []
    for step in range(steps):
        state, event = selector.refresh(state, params_at(step), {})
        state, batch = selector.next_batch(state)
        state = selector.observe(state, batch, jnp.ones(batch.indices.shape))
        seen.append((batch, event))
    return seen, state


def test_a_coreset_is_of_a_subset_of_its_own_at_the_parameters_of_its_step():
    config = fresh_settings(
        batch_size=6, subset_size=24, picks="medoids", embedding="logits", exclusion=None
    )
    seen, state = followed(config, 8)
    subsets = stratified_batches(ArraySource(INPUTS, LABELS), 24)
    stream_key, _ = jax.random.split(jax.random.key(0))
    walk = subsets.init(stream_key, None, None)
    embed = logit_gradients(linear)
    for step, (batch, _) in enumerate(seen):
        walk, subset = subsets.next_batch(walk)
        embeddings, _ = embed(params_at(step), {}, subset)
        side = class_side(1 / 3, 24)
        given = {"size": 6, "num_classes": CLASSES, "side": side}
        wanted = medoids(embeddings, subset.labels, **given)
        assert batch.indices.tolist() == subset.indices[wanted.indices].tolist()
        np.testing.assert_array_equal(batch.weights, wanted.weights)
    assert state.num_selected == 8
    assert state.work == state.work._replace(selection_forward=8 * 24, check_forward=0)
    assert state.region is state.moments is None


@pytest.mark.parametrize("scan", [1, 8])
def test_every_example_comes_where_each_subset_is_all_data(scan):
    config = fresh_settings(batch_size=16, subset_size=COUNT, exclusion=None)
    selector = crest(linear, ArraySource(INPUTS, LABELS), config)
    seen = np.zeros(COUNT, int)

    @jax.jit
    def step(params, batch):
        return params, batch.indices

    def count(number, rows):
        seen[np.asarray(rows)] += 1

    fit(
        selector, step, params_at(0), key=jax.random.key(0), steps=64, scan=scan,
        view=lambda params: (params, {}), on_step=count,
    )  # fmt: skip
    assert (seen > 0).sum() > 0.9 * COUNT


def test_subsets_may_be_drawn_without_regard_to_classes_whose_medoids_stay_apart():
    config = fresh_settings(
        batch_size=4, subset_size=24, picks="medoids", embedding="logits", exclusion=None,
        stratified=False, by_class=True,
    )  # fmt: skip
    seen, _ = followed(config, 12)
    subsets, shares = random_batches(ArraySource(INPUTS, LABELS), 24), []
    stream_key, _ = jax.random.split(jax.random.key(0))
    walk = subsets.init(stream_key, None, None)
    embed = logit_gradients(linear)
    for step, (batch, _) in enumerate(seen):
        walk, subset = subsets.next_batch(walk)
        shares.append(np.bincount(subset.labels, minlength=CLASSES).tolist())
        embeddings, _ = embed(params_at(step), {}, subset)
        wanted = medoids(embeddings, subset.labels, size=4, num_classes=CLASSES, by_class=True)
        assert batch.indices.tolist() == subset.indices[wanted.indices].tolist()
        np.testing.assert_array_equal(batch.weights, wanted.weights)
        assert set(np.asarray(batch.labels).tolist()) == set(range(CLASSES))
    assert len({tuple(share) for share in shares}) > 1, "shares change from subset to subset"


def test_what_is_told_is_where_coresets_begin_and_end_and_what_is_excluded():
    own = exclusion(window=5, threshold=0.9)
    config = fresh_settings(batch_size=6, subset_size=12, select_from=4, select_until=20, exclusion=own)
    seen, state = followed(config, 24)
    told = [(step, event.reason) for step, (_, event) in enumerate(seen) if event is not None]
    assert (4, "span_start") in told
    assert (20, "span_end") in told
    assert {reason for _, reason in told} <= {"span_start", "span_end", "window"}
    assert [step for step, reason in told if reason == "window" and step < 20]
    assert state.num_selected == 16
    event = next(event for _, event in seen if event is not None)
    assert event.rho is event.loss is event.curvature_norm is None
    assert not event.began_region


@pytest.mark.parametrize("picks", ["importance", "medoids"])
def test_a_score_that_is_not_finite_is_told_or_skipped(picks, monkeypatch):
    monkeypatch.setattr(algorithm, "LOOK_EVERY", 10)
    spoilt = INPUTS.copy()
    spoilt[17] = np.nan
    config = fresh_settings(batch_size=6, subset_size=30, picks=picks, exclusion=None)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite before step 10"):
        followed(config, 30, spoilt)
    ends = dataclasses.replace(config, select_until=7)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite before step 7"):
        followed(ends, 30, spoilt)
    seen, _ = followed(dataclasses.replace(config, nonfinite="skip"), 30, spoilt)
    assert all(bool(jnp.isfinite(batch.weights).all()) for batch, _ in seen)


def test_nothing_waits_between_windows_and_looks():
    config = fresh_settings(batch_size=6, subset_size=12, exclusion=exclusion(window=20))
    selector = crest(linear, ArraySource(INPUTS, LABELS), config)
    state = selector.init(jax.random.key(0), params_at(0), {})
    state, _ = selector.traced.refresh(state, params_at(0), {})
    assert selector.traced.quiet(state) == 20
    assert state.num_selected == 0, "the program chooses, not the host"


class Head(nn.Module):
    """Ends in a linear layer, or in something after one."""

    scaled: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(CLASSES)(nn.relu(nn.Dense(4)(x)))
        return 2 * x if self.scaled else x


@pytest.mark.parametrize("scaled", [False, True])
def test_examples_are_compared_by_the_last_layer_where_the_model_ends_in_one(scaled):
    module = Head(scaled)
    params = module.init(jax.random.key(0), INPUTS)["params"]
    apply_fn = from_linen(module)
    examples = ArraySource(INPUTS, LABELS).take(jnp.arange(9))
    found, losses = default_gradients(apply_fn)(params, {}, examples)
    wanted = logit_gradients(apply_fn) if scaled else last_layer_gradients(linen_features(module))
    expected, expected_losses = wanted(params, {}, examples)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(losses, expected_losses)


def test_equal_models_share_the_programs_of_their_selections():
    one, two = (
        crest(
            from_linen(Head()),
            ArraySource(INPUTS, LABELS),
            fresh_settings(subset_size=90, batch_size=6),
        )
        for _ in range(2)
    )
    assert one.traced.inside == two.traced.inside
    assert hash(one.traced.inside) == hash(two.traced.inside)


def test_a_model_that_is_no_value_trains_in_programs_too():
    class Unhashable:
        __hash__ = None

        def __call__(self, params, state, inputs, *, train, rng):
            return inputs @ params, state

    config = fresh_settings(batch_size=6, subset_size=12, exclusion=None)
    selector = crest(Unhashable(), ArraySource(INPUTS, LABELS), config)
    step = jax.jit(lambda params, batch: (0.9 * params, batch.weights.sum()))
    view = lambda params: (params, {})  # noqa: E731
    seen = []
    fit(
        selector, step, params_at(0), key=jax.random.key(0), steps=6, view=view, scan=4,
        on_step=lambda number, total: seen.append(float(total)),
    )  # fmt: skip
    np.testing.assert_allclose(seen, 12, rtol=0.05)


def even_until(step):
    """Embeddings that are equally long while ``params``, the steps taken, are below ``step``."""

    def embed(params, state, examples):
        stretch = jnp.where(params < step, 1.0, jnp.exp(3 * examples.inputs[:, :1]))
        losses = 1.0 + jnp.zeros(len(examples.labels))
        return stretch * jnp.ones((1, 4)), losses

    return embed


def counted(params, state, inputs, *, train, rng):
    return inputs[:, :CLASSES] + params, state


def paused(monkeypatch, even=35, **fields):
    monkeypatch.setattr(algorithm, "LOOK_EVERY", 10)
    given = {"batch_size": 6, "subset_size": 24, "pause_above": 0.75, "exclusion": None} | fields
    embed = even_until(even)
    return crest(counted, ArraySource(INPUTS, LABELS), fresh_settings(**given), embed_fn=embed)


def test_no_coresets_are_chosen_while_gradients_are_about_equally_long(monkeypatch):
    selector = paused(monkeypatch)
    state, told, chosen = selector.init(jax.random.key(0), jnp.float32(0), {}), [], []
    for step in range(60):
        before = state.num_selected
        state, event = selector.refresh(state, jnp.float32(step), {})
        state, batch = selector.next_batch(state)
        if state.num_selected > before:
            chosen.append(step)
        else:
            np.testing.assert_array_equal(batch.weights, np.ones(6))
            assert np.bincount(batch.labels).tolist() == [2, 2, 2], "stratified"
        if event is not None:
            told.append((step, event.reason, event.evenness))
    # Looked at before steps 10, 21, 32 and 43, after the coresets of steps 9, 20, 31 and 42.
    assert chosen == [*range(10), 20, 31, *range(42, 60)]
    assert [row[:2] for row in told] == [(0, "span_start"), (10, "paused"), (43, "resumed")]
    assert told[1][2] == 1 > 0.75 > told[2][2] > 0
    assert state.work.selection_forward == 24 * len(chosen)


def test_evenness_is_that_of_the_subset_weighted_as_its_examples_count(monkeypatch):
    lengths = np.exp(3 * INPUTS[:, 0])
    selector = paused(monkeypatch, even=0, subset_size=90, pause_above=1.0)
    state = selector.init(jax.random.key(0), jnp.float32(0), {})
    state, _ = selector.refresh(state, jnp.float32(0), {})
    assert float(state.evenness) == pytest.approx(lengths.mean() ** 2 / np.square(lengths).mean())
    weights = 1.0 + 3.0 * (np.arange(90) % 4 == 0)
    problem = Problem(fresh_settings(batch_size=6), counted, cross_entropy, even_until(0), None)
    examples = ArraySource(INPUTS, LABELS).take(jnp.arange(90))
    *_, found = _choose(
        problem, Form(3, 0, None, None), jnp.float32(0), {}, examples, jnp.asarray(LABELS)[None],
        jnp.float32(weights)[None], jnp.arange(90)[None], jax.random.key(0),
    )  # fmt: skip
    own = weights * lengths
    assert float(found) == pytest.approx(own.mean() ** 2 / np.square(own).mean())


@pytest.mark.parametrize("own", [None, {"window": 7, "threshold": 2.0}])
def test_steps_in_one_program_pause_where_single_steps_do(monkeypatch, own):
    step = jax.jit(lambda params, batch: (params + 1, (batch.indices, batch.weights, batch.weights)))

    def run(scan):
        rows, told = [], []
        last = fit(
            paused(monkeypatch, exclusion=own), step, jnp.float32(0), key=jax.random.key(3), steps=60,
            view=lambda params: (params, {}), scan=scan, losses=lambda metrics: metrics[2],
            on_step=lambda number, metrics: rows.append(jax.device_get(metrics)),
            on_event=lambda event: told.append((event.step, event.reason)),
        )  # fmt: skip
        assert float(last) == 60
        return rows, told

    seen = [run(scan) for scan in (1, 32)]
    for one, other in zip(seen[0][0], seen[1][0], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], rtol=1e-5)
    assert seen[0][1] == seen[1][1]
    assert {"paused", "resumed"} <= {reason for _, reason in seen[0][1]}


@pytest.mark.parametrize("value", [0.0, 1.5, float("nan"), "often", None, np.ones(2)])
def test_a_bad_evenness_is_refused(value):
    with pytest.raises(
        ValueError, match=r"pause_above is .* must lie in \(0, 1\]; choose a value there"
    ):
        fresh_settings(pause_above=value)


def test_regions_do_not_pause():
    with pytest.raises(ValueError, match=r"pause_above is 0\.75 but must be 1 with regions, .*; pass"):
        settings(pause_above=0.75)


def test_steps_in_one_program_pause_in_64_bits_too(monkeypatch):
    with jax.enable_x64(True):
        step = jax.jit(lambda params, batch: (params + 1, batch.weights))
        last = fit(
            paused(monkeypatch), step, jnp.float64(0), key=jax.random.key(3), steps=24,
            view=lambda params: (params, {}), scan=8,
        )  # fmt: skip
    assert float(last) == 24
