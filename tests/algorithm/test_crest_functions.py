"""Each function of Algorithm 1, with a state made by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_settings import changed, exclusion, settings

from crest_jax import ArraySource, CrestConfig, ExclusionConfig, cross_entropy
from crest_jax.algorithm import crest as algorithm
from crest_jax.algorithm.parts import Model, make_parts
from crest_jax.types import untimed

COUNT, FEATURES, CLASSES = 48, 4, 3
RNG = np.random.default_rng(0)
LABELS = np.arange(COUNT) % CLASSES
INPUTS = np.float32(RNG.normal(size=(COUNT, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[LABELS])
PARAMS = jnp.asarray(0.1 * RNG.normal(size=(FEATURES, CLASSES)), jnp.float32)
MODEL = Model(PARAMS, {})
CONFIG = settings(
    batch_size=6, subset_size=12, probe_size=9, max_coresets=5, max_interval=4, exclusion=None,
    coresets_per_interval=1.5,
)  # fmt: skip


def linear(params, state, inputs, *, train, rng):
    return inputs @ params, state


def parts_of(config=CONFIG):
    return make_parts(
        linear, ArraySource(INPUTS, LABELS), config, loss_fn=cross_entropy, embed_fn=None,
        phase=untimed,
    )  # fmt: skip


@pytest.fixture
def parts():
    return parts_of()


@pytest.fixture
def state(parts):
    return algorithm.init(parts, jax.random.key(0), *MODEL)


def mean_loss(params, indices, weights):
    logits = INPUTS[indices].astype(np.float64) @ np.asarray(params, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(indices)), LABELS[indices]]
    return float((losses * weights).sum() / weights.sum())


def test_the_number_of_coresets_fits_interval_buffer_and_span(parts):
    assert [algorithm.num_coresets(parts, 0, t) for t in (1, 2, 3, 4)] == [2, 3, 5, 5]
    ending = parts_of(changed(CONFIG, select_until=10))
    assert [algorithm.num_coresets(ending, step, 4) for step in (0, 6, 9)] == [5, 4, 1]


def test_coresets_are_appended_and_cover_their_subsets(parts, state):
    first = algorithm.add_coresets(parts, state, MODEL, 2)
    second = algorithm.add_coresets(parts, first, MODEL, 1)
    assert (second.buffer.num_coresets, second.buffer.num_used, second.num_selected) == (3, 0, 3)
    assert second.work.selection_forward == 3 * CONFIG.subset_size
    np.testing.assert_array_equal(second.buffer.indices[:2], first.buffer.indices[:2])
    assert second.buffer.weights[:3].sum(axis=1).tolist() == [CONFIG.subset_size] * 3
    for row in np.asarray(second.buffer.indices[:3]):
        assert len(set(row.tolist())) == CONFIG.batch_size
    assert second.region is state.region


@pytest.mark.parametrize("fitted_on", ["probe", "coresets"])
def test_the_quadratic_model_is_gradient_and_hessian_diagonal_of_its_examples(state, fitted_on):
    config = changed(CONFIG, curvature="diagonal", fitted_on=fitted_on)
    parts = parts_of(config)
    state = algorithm.add_coresets(parts, state, MODEL, 2)
    region = state.region._replace(probe_indices=jnp.arange(9), probe_weights=1.0 + jnp.arange(9))
    state = state._replace(region=region)
    fitted, _, finite = algorithm.fit_model(parts, state, MODEL)
    assert finite
    rows, weights = np.arange(9), 1.0 + np.arange(9)
    if fitted_on == "coresets":
        rows, weights = (
            np.asarray(x[:2]).ravel() for x in (state.buffer.indices, state.buffer.weights)
        )

    def loss(flat):
        logits = INPUTS[rows] @ flat.reshape(FEATURES, CLASSES)
        return jnp.average(cross_entropy(logits, jnp.asarray(LABELS[rows])), weights=weights)

    gradient = jax.grad(loss)(PARAMS.ravel()).reshape(PARAMS.shape)
    np.testing.assert_allclose(fitted.region.gradient, gradient, atol=1e-6)
    assert fitted.curvature_norm == pytest.approx(float(jnp.linalg.norm(fitted.region.curvature)))
    assert fitted.reference_norm == fitted.curvature_norm
    assert fitted.work.curvature_forward == 2 * len(rows)
    # One Rademacher probe is no diagonal, but its mean over many keys is.
    hessian = np.diag(jax.hessian(loss)(PARAMS.ravel())).reshape(PARAMS.shape)
    drawn = [
        algorithm.fit_model(parts, state._replace(key=jax.random.key(seed)), MODEL)[0].region.curvature
        for seed in range(200)
    ]
    spread = np.std(drawn, axis=0) / np.sqrt(200)
    assert (np.abs(np.mean(drawn, axis=0) - hessian) <= 5 * spread + 1e-6).all()


def test_the_reference_norm_waits_for_the_end_of_the_warm_up(state):
    late = parts_of(changed(CONFIG, reference_step=3))
    state = algorithm.add_coresets(late, state, MODEL, 1)
    assert math.isnan(algorithm.fit_model(late, state._replace(step=2), MODEL)[0].reference_norm)
    taken = algorithm.fit_model(late, state._replace(step=3), MODEL)[0]
    assert taken.reference_norm == taken.curvature_norm
    later = algorithm.fit_model(late, taken._replace(step=9), Model(2 * PARAMS, {}))[0]
    assert later.reference_norm == taken.reference_norm != later.curvature_norm


@pytest.mark.parametrize("smoothing", ["none", "signed", "paper"])
def test_regions_of_parameters_that_stay_have_one_length(smoothing):
    """Averaging lowers the noise of a diagonal, and no norm may take that for less curvature."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(2000, 50)).astype(np.float32), rng.integers(0, 10, 2000)
    first, last = rng.normal(size=(50, 64)) / 7, rng.normal(size=(64, 10)) / 8
    model = Model({"a": jnp.float32(first), "b": jnp.float32(last)}, {})

    def network(params, state, inputs, *, train, rng):
        return jnp.tanh(inputs @ params["a"]) @ params["b"], state

    config = changed(
        settings(batch_size=64, subset_size=128, probe_size=64, max_coresets=1, exclusion=None),
        smoothing=smoothing, interval_multiplier=7.5, max_interval=100,
    )  # fmt: skip
    parts = make_parts(
        network, ArraySource(inputs, labels), config, loss_fn=cross_entropy, embed_fn=None,
        phase=untimed,
    )  # fmt: skip
    state, lengths = algorithm.init(parts, jax.random.key(1), *model), []
    for _ in range(20):
        state, *_ = algorithm.begin_region(parts, state, model)
        lengths.append(state.interval)
    assert lengths[0] == 8
    assert max(lengths) - min(lengths) <= 1


def test_a_region_begins_with_what_its_name_says(parts, state):
    waiting = algorithm.add_coresets(parts, state, MODEL, 3)
    waiting = waiting._replace(step=7, buffer=waiting.buffer._replace(num_used=1))
    begun, loss, finite = algorithm.begin_region(parts, waiting, MODEL)
    assert finite
    region = begun.region
    np.testing.assert_array_equal(region.anchor, PARAMS)
    expected = mean_loss(PARAMS, np.asarray(region.probe_indices), np.asarray(region.probe_weights))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert float(region.loss) == loss
    assert begun.num_unused == 2
    assert (begun.num_regions, begun.next_check) == (1, 7 + begun.interval)
    assert begun.buffer.num_coresets == algorithm.num_coresets(parts, 7, begun.interval)


@pytest.mark.parametrize("curvature", ["diagonal", "direction"])
def test_the_check_compares_the_model_with_the_loss_at_the_parameters_now(curvature):
    parts = parts_of(changed(CONFIG, curvature=curvature))
    state = algorithm.init(parts, jax.random.key(0), *MODEL)
    begun, start, _ = algorithm.begin_region(parts, state, MODEL)
    assert algorithm.check_model(parts, begun, MODEL)[1] == (start, 0.0, 0.0, True)
    delta = 0.3 * np.random.default_rng(1).normal(size=PARAMS.shape)
    moved = PARAMS + jnp.asarray(delta, jnp.float32)
    _, (loss, rho, unchanged, _) = algorithm.check_model(parts, begun, Model(moved, {}))
    region = begun.region
    rows = np.asarray(region.probe_indices)
    bend = np.vdot(region.curvature * delta, delta) if curvature == "diagonal" else None
    if bend is None:
        at_anchor = lambda p: jnp.mean(cross_entropy(INPUTS[rows] @ p, jnp.asarray(LABELS[rows])))  # noqa: E731
        hessian = jax.hessian(at_anchor)(PARAMS).reshape(PARAMS.size, PARAMS.size)
        bend = delta.ravel() @ np.float64(hessian) @ delta.ravel()
    said = start + np.vdot(region.gradient, delta) + bend / 2
    now = mean_loss(moved, rows, np.ones(9))
    assert loss == pytest.approx(now, rel=1e-6)
    assert rho == pytest.approx(abs(said - now) / now, rel=1e-3)
    assert unchanged == pytest.approx(abs(start - now) / now, rel=1e-3)


@pytest.mark.parametrize(("tau", "reason"), [(1e6, "kept"), (1e-6, "error")])
def test_a_check_that_is_due_keeps_or_ends_the_region(tau, reason):
    parts = parts_of(changed(CONFIG, tau=tau))
    state = algorithm.init(parts, jax.random.key(0), *MODEL)
    state, event = algorithm.refresh(parts, state, *MODEL)
    assert (event.reason, event.began_region, event.rho) == ("start", True, None)
    assert algorithm.refresh(parts, state._replace(step=state.next_check - 1), *MODEL) == (
        state._replace(step=state.next_check - 1), None,
    )  # fmt: skip
    due = state._replace(step=state.next_check)
    after, event = algorithm.refresh(parts, due, PARAMS * 3, {})
    assert (event.reason, event.began_region) == (reason, reason == "error")
    assert event.rho > 0
    assert after.num_regions == event.num_regions == 1 + event.began_region
    assert after.next_check == due.step + after.interval


def test_a_region_that_outlives_its_coresets_gets_others_and_counts_none_as_unused(parts, state):
    begun, *_ = algorithm.begin_region(parts, state, MODEL)
    all_used = begun.buffer._replace(num_used=begun.buffer.num_coresets)
    more = algorithm.extend(parts, begun._replace(buffer=all_used, step=2), MODEL)
    left = begun.next_check - 2
    assert more.buffer.num_coresets == min(left, algorithm.num_coresets(parts, 2, begun.interval))
    assert more.num_unused == 0
    assert more.num_regions == 1


def test_windows_close_when_they_are_over_and_losses_are_noted_outside_the_span():
    own = exclusion(window=5, threshold=0.5, keep_fraction=0.0)
    parts = parts_of(changed(CONFIG, exclusion=own, select_from=100))
    state = algorithm.init(parts, jax.random.key(0), *MODEL)
    assert algorithm.close_window(parts, state._replace(step=4)) == state._replace(step=4)
    state, batch = algorithm.next_batch(parts, state)
    noted = algorithm.observe(parts, state, batch, jnp.zeros(6))
    closed = algorithm.close_window(parts, noted._replace(step=5))
    assert closed.excluded == 6
    assert set(np.flatnonzero(closed.pool.exclusion.excluded).tolist()) == set(batch.indices.tolist())
    inside = parts_of(changed(CONFIG, exclusion=own))
    assert algorithm.observe(inside, state, batch, jnp.zeros(6)) is state


def test_paper_is_the_paper_field_by_field() -> None:
    found = CrestConfig.paper(num_examples=50_000, steps=7_820)
    assert dataclasses.asdict(found) == {
        "batch_size": 128,  # m
        "subset_size": 500,  # r, 1 % of n
        "region": {
            "probe_size": 500,
            "tau": 0.1,
            "interval_multiplier": 1.0,  # h0
            "max_interval": 40,  # mini-batches of a tenth of the data
            "coresets_per_interval": 5.0,  # b
            "max_coresets": 40,
            "fitted_on": "coresets",
            "curvature": "diagonal",
            "smoothing": "paper",  # AdaHessian's moments
            "curvature_of": None,
            "reference_step": 782,
        },
        "picks": "medoids",
        "embedding": "logits",
        "select_from": None,  # all steps
        "select_until": None,
        "stratified": False,
        "by_class": True,
        "exclusion": {
            "threshold": 0.1, "window": 782, "cooldown": None, "keep_fraction": 0.0, "until": None,
            "relative": False,
        },
        "pause_above": 1.0,
        "nonfinite": "stop",
    }  # fmt: skip
    assert CrestConfig.paper(num_examples=1_000, steps=100).subset_size == 128


def test_recommended_selects_up_to_the_first_drop() -> None:
    def span(**options):
        config = CrestConfig.recommended(**options)
        return config.select_from, config.select_until

    assert span(steps=1000) == (None, 500)
    assert span(steps=1000, first_drop=600) == (None, 600)
    assert span(steps=1000, first_drop=300) == (None, 300)
    assert span(steps=1000, first_drop=1000) == (None, None)
    config = CrestConfig.recommended(steps=1000, batch_size=64, num_examples=500)
    assert (config.subset_size, config.exclusion) == (256, ExclusionConfig.recommended(until=500))
    normed = CrestConfig.recommended(steps=1000, batch_size=64, batch_norm=True)
    assert (normed.picks, normed.subset_size, normed.region) == ("medoids", 128, None)
    for bad in ({"steps": 0}, {"steps": 10, "batch_size": -1}):
        with pytest.raises(ValueError, match="must be"):
            CrestConfig.recommended(**bad)


def test_equal_problems_share_their_compiled_functions():
    one, two = parts_of(), parts_of(changed(CONFIG))
    assert one.compiled is two.compiled
    assert parts_of(changed(CONFIG, tau=0.2)).compiled is not one.compiled

    class Unhashable:
        __hash__ = None

        def __call__(self, *args, **kwargs):
            return linear(*args, **kwargs)

    made = make_parts(
        Unhashable(), ArraySource(INPUTS, LABELS), CONFIG, loss_fn=cross_entropy, embed_fn=None,
        phase=untimed,
    )  # fmt: skip
    state = algorithm.init(made, jax.random.key(0), *MODEL)
    assert algorithm.refresh(made, state, *MODEL)[1].reason == "start"
