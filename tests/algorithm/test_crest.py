"""CREST as a whole: regions, exactness of the model, exclusion, counters, and its errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from small_settings import changed, exclusion, settings

from crest_jax import ArraySource, Batch, CrestConfig, crest, cross_entropy, fit, sketched_gradients
from crest_jax.algorithm import CrestState
from crest_jax.algorithm.parts import most_observations
from crest_jax.gradients import weighted_mean

FEATURES, CLASSES, COUNT = 6, 3, 96


def linear(params: Any, model_state: Any, inputs: Any, *, train: bool, rng: Any) -> tuple[Any, Any]:
    """Logits with a running mean in the state, as BatchNorm has it."""
    del rng
    mean = model_state["mean"]
    if train:
        model_state = {"mean": 0.9 * mean + 0.1 * inputs.mean(0)}
    return (inputs - mean[None]) @ params["w"] + params["b"][None], model_state


def make_source(seed: int = 0, labels: np.ndarray | None = None) -> ArraySource:
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % CLASSES if labels is None else labels
    centres = 2 * rng.normal(size=(CLASSES, FEATURES))
    inputs = centres[labels] + rng.normal(size=(COUNT, FEATURES))
    return ArraySource(inputs.astype(np.float32), labels)


def make_params(seed: int = 0) -> dict[str, jax.Array]:
    w = 0.1 * jax.random.normal(jax.random.key(seed), (FEATURES, CLASSES))
    return {"w": w, "b": jnp.zeros(CLASSES)}


STATE = {"mean": jnp.zeros(FEATURES)}
CONFIG = settings(
    batch_size=12,
    subset_size=36,
    probe_size=30,
    max_coresets=8,
    exclusion=None,
    tau=0.02,
    interval_multiplier=4.0,
)


def make_step(tx: optax.GradientTransformation, donate: bool = False) -> Any:
    def step(state: tuple[Any, Any, Any], batch: Batch) -> tuple[tuple[Any, Any, Any], Any]:
        params, model_state, opt_state = state

        def loss(params: Any) -> tuple[Any, Any]:
            logits, new = linear(params, model_state, batch.inputs, train=True, rng=None)
            return weighted_mean(cross_entropy(logits, batch.labels), batch.weights), new

        (value, model_state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), model_state, opt_state), value

    return jax.jit(step, donate_argnums=0 if donate else ())


def train(
    config: CrestConfig, tx: optax.GradientTransformation, steps: int, donate: bool = False
) -> list[tuple[CrestState, Any, Any, Any, Batch]]:
    """Return (state, event, params, model_state, batch) of every step, copied to the host."""
    selector = crest(linear, make_source(), config)
    step = make_step(tx, donate)
    params = jax.tree.map(jnp.copy, make_params())
    train_state = (params, jax.tree.map(jnp.copy, STATE), tx.init(params))
    state = selector.init(jax.random.key(1), *train_state[:2])
    history = []
    for _ in range(steps):
        state, event = selector.refresh(state, *train_state[:2])
        seen = jax.tree.map(np.array, train_state[:2])
        state, batch = selector.next_batch(state)
        history.append((state, event, *seen, batch))
        train_state, _ = step(train_state, batch)
    return history


def probe_loss(params: Any, model_state: Any, rows: np.ndarray) -> float:
    """The mean loss in NumPy, float64."""
    examples = make_source().take(jnp.asarray(rows))
    inputs, labels = np.asarray(examples.inputs, np.float64), np.asarray(examples.labels)
    logits = (inputs - model_state["mean"]) @ np.float64(params["w"]) + params["b"]
    highest = logits.max(1)
    log_sum = np.log(np.exp(logits - highest[:, None]).sum(1)) + highest
    return float(np.mean(log_sum - logits[np.arange(len(labels)), labels]))


@pytest.mark.slow
def test_error_is_exactly_zero_at_zero_step() -> None:
    history = train(CONFIG, optax.set_to_zero(), 12)
    # The running mean moves even when the parameters do not: freeze it for this test.
    selector = crest(linear, make_source(), CONFIG)
    state = selector.init(jax.random.key(1), make_params(), STATE)
    errors = []
    for _ in range(12):
        state, event = selector.refresh(state, make_params(), STATE)
        state, _ = selector.next_batch(state)
        if event is not None and event.rho is not None:
            errors.append(event.rho)
    assert len(errors) >= 2
    assert errors == [0.0] * len(errors)
    # Drift of the statistics is part of the error.
    drifted = [event.rho for _, event, *_ in history if event and event.rho is not None]
    assert max(drifted) > 0


@pytest.mark.slow
def test_step_and_error_are_right_under_adamw_with_weight_decay() -> None:
    tx = optax.adamw(0.02, weight_decay=0.3)
    history = train(changed(CONFIG, curvature="diagonal"), tx, 60)
    anchors, compared = {}, 0
    for state, event, params, model_state, _ in history:
        if event is None:
            continue
        if event.rho is not None:
            region, anchor = anchors["last"]
            delta = {name: np.float64(params[name]) - anchor[0][name] for name in params}
            start = probe_loss(*anchor, region.probe_indices)
            now = probe_loss(params, model_state, region.probe_indices)
            predicted = start + sum(
                np.vdot(region.gradient[name], delta[name])
                + 0.5 * np.vdot(delta[name], region.curvature[name] * delta[name])
                for name in params
            )
            assert event.rho_unchanged == pytest.approx(abs(start - now) / now, rel=1e-3, abs=1e-5)
            assert event.rho == pytest.approx(abs(predicted - now) / now, rel=1e-3, abs=1e-5)
            assert event.loss == pytest.approx(
                probe_loss(params, model_state, state.region.probe_indices), rel=1e-5
            )
            compared += event.rho > 1e-3
        if event.reason != "kept":
            anchors["last"] = (jax.tree.map(np.array, state.region), (params, model_state))
            for name in params:
                np.testing.assert_array_equal(state.region.anchor[name], params[name])
    assert compared >= 5
    assert history[-1][0].num_regions >= 3


def test_anchor_survives_a_step_that_donates_its_buffers() -> None:
    plain = train(CONFIG, optax.sgd(0.1, momentum=0.9), 20)
    donated = train(CONFIG, optax.sgd(0.1, momentum=0.9), 20, donate=True)
    for (_, _, a, _, x), (_, _, b, _, y) in zip(plain, donated, strict=True):
        np.testing.assert_array_equal(a["w"], b["w"])
        np.testing.assert_array_equal(x.indices, y.indices)


def test_each_batch_is_one_whole_coreset() -> None:
    history = train(CONFIG, optax.sgd(0.1), 30)
    counts = np.full(CLASSES, CONFIG.subset_size / CLASSES)
    for state, _, _, _, batch in history:
        rows = np.asarray(batch.indices)
        assert len(set(rows.tolist())) == CONFIG.batch_size
        per_class = np.bincount(batch.labels, weights=batch.weights, minlength=CLASSES)
        np.testing.assert_array_equal(per_class, counts)
        np.testing.assert_array_equal(batch.labels, rows % CLASSES)
        np.testing.assert_array_equal(state.buffer.indices[state.buffer.num_used - 1], rows)


def test_regions_checks_and_counters_agree() -> None:
    config = settings(
        batch_size=12, subset_size=36, probe_size=30, exclusion=None, tau=0.25,
        coresets_per_interval=1.6, max_interval=5, max_coresets=8,
        interval_multiplier=4.0,
    )  # fmt: skip
    history = train(config, optax.sgd(0.3, momentum=0.9), 60)
    events = [event for _, event, *_ in history if event is not None]
    assert events[0].reason == "start"
    assert {e.reason for e in events} == {"start", "error", "kept"}
    regions = checks = curvatures = 0
    for event in events:
        began = event.began_region
        regions += began
        checks += began + (event.rho is not None)
        curvatures += began
        assert event.num_regions == regions
        assert (event.reason == "error") == (event.rho is not None and event.rho > config.region.tau)
        assert 1 <= event.interval <= config.region.max_interval
        if began:
            assert event.coresets == min(8, int(np.ceil(1.6 * event.interval)))
        assert event.work.check_forward == checks * config.region.probe_size
        assert event.work.selection_forward == event.num_selected * config.subset_size
        # A diagonal when a region begins, and a product at a check that is not the first.
        assert (
            event.work.curvature_backward
            == (curvatures + checks - regions) * 2 * config.region.probe_size
        )
    last = history[-1][0]
    assert (
        last.num_selected
        == last.step + last.num_unused + last.buffer.num_coresets - last.buffer.num_used
    )
    assert last.num_unused > 0


def test_learned_examples_leave_the_draws_and_return_when_a_class_runs_dry() -> None:
    labels = np.arange(COUNT) % CLASSES
    # Class 0 is learned whole, class 1 in part; logits do not depend on the parameters.
    margin = np.where((labels == 0) | ((labels == 1) & (np.arange(COUNT) < 48)), 9.0, 0.1)

    def fixed(params: Any, model_state: Any, inputs: Any, *, train: bool, rng: Any) -> Any:
        return inputs + 0 * params, model_state

    logits = margin[:, None] * np.eye(CLASSES)[labels]
    source = ArraySource(logits.astype(np.float32), labels)
    config = settings(
        batch_size=12, subset_size=36, probe_size=30, max_interval=2,
        exclusion={"window": 40, "threshold": 0.1, "cooldown": 1, "keep_fraction": 0.0},
    )  # fmt: skip
    selector = crest(fixed, source, config)
    params = jnp.zeros(())
    state = selector.init(jax.random.key(0), params, {})
    seen: list[set[int]] = [set(), set(), set()]
    excluded = []
    for step in range(120):
        state, event = selector.refresh(state, params, {})
        state, batch = selector.next_batch(state)
        seen[step // 40].update(np.asarray(batch.indices).tolist())
        excluded.append(state.excluded)
        assert event is None or event.excluded == state.excluded
    learned = set(np.flatnonzero((labels == 1) & (np.arange(COUNT) < 48)).tolist())
    assert learned & seen[0]
    assert not learned & seen[1]
    assert learned & seen[2], "they return after one window"
    # A class that would run dry stays in play whole.
    assert {row for row in seen[1] if labels[row] == 0}
    assert excluded[79] == len(learned)
    assert excluded[119] == 0


@pytest.mark.slow
def test_learned_examples_kept_in_play_count_for_those_left_out() -> None:
    labels = np.repeat(np.arange(CLASSES), [48, 24, 24])
    learned = np.arange(COUNT) % 2 == 0

    def fixed(params: Any, model_state: Any, inputs: Any, *, train: bool, rng: Any) -> Any:
        return inputs + 0 * params, model_state

    margin = np.where(learned, 9.0, 0.5) + np.random.default_rng(0).random(COUNT)
    logits = margin[:, None] * np.eye(CLASSES)[labels]
    source = ArraySource(logits.astype(np.float32), labels)
    config = settings(
        batch_size=12, subset_size=24, probe_size=30, max_interval=2, select_from=100,
        exclusion={"window": 20, "threshold": 0.1, "cooldown": None},
    )  # fmt: skip
    selector = crest(fixed, source, config)
    params = jnp.zeros(())
    state = selector.init(jax.random.key(0), params, {})
    total = {"coreset": [], "random": []}
    for step in range(200):
        state, _ = selector.refresh(state, params, {})
        state, batch = selector.next_batch(state)
        rows, weights = np.asarray(batch.indices), np.asarray(batch.weights)
        state = selector.observe(state, batch, jnp.where(learned[rows], 0.0, 1.0))
        if step >= 24:
            assert state.excluded == learned.sum()
            total["random" if step < 100 else "coreset"].append((weights, learned[rows]))
    for weights, out in total["random"]:
        assert weights.tolist() == np.where(out, 4.0, 1.0).tolist()
    for kind in total.values():
        weight = np.sum([w.sum() for w, _ in kind])
        share = np.sum([w[out].sum() for w, out in kind]) / weight
        assert share == pytest.approx(learned.mean(), abs=0.06), "learned examples keep their share"
        assert np.mean([out.mean() for _, out in kind]) < 0.4
    # A subset of 24 holds about 24 / 60 of the 60 rows in play, which stand for all 96.
    assert np.mean([w.sum() for w, _ in total["coreset"]]) == pytest.approx(24 * 96 / 60, rel=0.1)


def test_curvature_of_a_part_has_no_arrays_elsewhere_and_selects_on() -> None:
    config = changed(CONFIG, curvature="diagonal", curvature_of="^b$")
    events = [event for _, event, *_ in train(config, optax.sgd(0.1), 30) if event is not None]
    assert events[-1].num_regions > 1
    selector = crest(linear, make_source(), config)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    state, event = selector.refresh(state, make_params(), STATE)
    assert state.region.curvature["w"] is None
    assert float(jnp.abs(state.region.gradient["w"]).max()) > 0
    norm = float(jnp.linalg.norm(state.region.curvature["b"]))
    assert event is not None
    assert event.curvature_norm == pytest.approx(norm) != 0
    with pytest.raises(ValueError, match="curvature_of is 'x'"):
        crest(linear, make_source(), changed(CONFIG, curvature_of="x")).init(
            jax.random.key(0), make_params(), STATE
        )


def test_along_the_way_gone_the_hessian_of_a_part_is_its_block() -> None:
    params, moved = make_params(), jax.tree.map(lambda x: x + 0.4 * jnp.cos(x * 99), make_params(1))
    selector = crest(linear, make_source(), changed(CONFIG, curvature_of="^b$"))
    state, _ = selector.refresh(selector.init(jax.random.key(0), params, STATE), params, STATE)
    region = state.region
    examples = make_source().take(region.probe_indices)

    def loss(b: jax.Array) -> jax.Array:
        logits, _ = linear(params | {"b": b}, STATE, examples.inputs, train=False, rng=None)
        return cross_entropy(logits, examples.labels).mean()

    delta = {name: np.float64(moved[name]) - np.float64(params[name]) for name in params}
    said = float(region.loss) + sum(np.vdot(region.gradient[name], delta[name]) for name in delta)
    said += 0.5 * delta["b"] @ np.float64(jax.hessian(loss)(params["b"])) @ delta["b"]
    there = jax.tree.map(np.asarray, (moved, STATE))
    now = probe_loss(*there, np.asarray(region.probe_indices))
    _, event = selector.refresh(state._replace(step=state.next_check), moved, STATE)
    assert event is not None
    assert event.rho == pytest.approx(abs(said - now) / now, rel=1e-3) != 0


@pytest.mark.parametrize(
    ("smoothing", "fitted_on"), [("signed", "probe"), ("paper", "coresets"), ("none", "probe")]
)
def test_nothing_compiles_after_the_first_region(smoothing: Any, fitted_on: Any) -> None:
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    config = settings(
        batch_size=12, subset_size=36, probe_size=30, exclusion={"threshold": 0.3, "window": 7},
        tau=0.02, interval_multiplier=1.0, max_interval=16, coresets_per_interval=1.3,
        smoothing=smoothing, fitted_on=fitted_on,
        curvature="direction" if smoothing == "none" else "diagonal",
    )  # fmt: skip
    tx = optax.sgd(0.3, momentum=0.9)
    selector, step = crest(linear, make_source(), config), make_step(tx)
    train_state = (make_params(), STATE, tx.init(make_params()))
    state = selector.init(jax.random.key(1), *train_state[:2])
    while state.num_regions < 2:  # through the first region and its check
        state, _ = selector.refresh(state, *train_state[:2])
        state, batch = selector.next_batch(state)
        train_state, _ = step(train_state, batch)
    intervals, excluded = set(), set()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(80):
            state, _ = selector.refresh(state, *train_state[:2])
            state, batch = selector.next_batch(state)
            train_state, _ = step(train_state, batch)
            intervals.add(state.interval)
            excluded.add(state.excluded)
        assert compiled == []
        jax.jit(lambda x: x + state.step)(1.0)
        assert compiled, "the listener must be able to see a compilation"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert state.num_regions >= 6
    assert len(excluded) > 1
    assert len(intervals) > 1 or smoothing == "paper"


def test_fit_runs_crest_and_lowers_the_loss() -> None:
    tx = optax.sgd(0.3)
    source, events = make_source(), []
    params = make_params()
    trained, *_ = fit(
        crest(linear, source, CONFIG),
        make_step(tx),
        (params, STATE, tx.init(params)),
        key=jax.random.key(0),
        steps=40,
        view=lambda state: state[:2],
        on_event=events.append,
    )
    rows = np.arange(COUNT)
    state = jax.tree.map(np.asarray, STATE)
    before, after = (probe_loss(jax.tree.map(np.asarray, p), state, rows) for p in (params, trained))
    assert after < 0.5 * before
    assert events[-1].num_regions >= 2


@pytest.mark.slow
def test_a_missing_class_and_a_class_of_one_example_are_no_obstacle() -> None:
    labels = np.where(np.arange(COUNT) == 5, 0, 2)  # class 1 is missing, class 0 has one example
    source = ArraySource(make_source().take(jnp.arange(COUNT)).inputs, labels)
    config = changed(CONFIG, exclusion=exclusion(threshold=5.0, window=4))
    selector = crest(linear, source, config)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    seen = set()
    for _ in range(24):
        state, _ = selector.refresh(state, make_params(), STATE)
        state, batch = selector.next_batch(state)
        assert float(batch.weights.sum()) == CONFIG.subset_size
        seen.update(np.asarray(batch.labels).tolist())
    assert 2 in seen
    assert 1 not in seen


def test_after_both_ends_batches_are_random_ones_of_all_examples_and_nothing_is_scored() -> None:
    labels = np.repeat(np.arange(CLASSES), [48, 24, 24])
    source = make_source(labels=labels)
    config = changed(
        CONFIG, select_until=25, max_interval=2,
        exclusion=exclusion(threshold=1.0, window=10, keep_fraction=0.0, until=25),
    )  # fmt: skip
    selector = crest(linear, source, config)
    params = make_params()
    state = selector.init(jax.random.key(0), params, STATE)
    events, batches, work, excluded = [], [], [], []
    for _ in range(49):
        state, event = selector.refresh(state, params, STATE)
        again, second = selector.refresh(state, params, STATE)
        if state.step >= 25:
            assert second is None
            assert again.buffer.num_coresets == 0
        events += [event] if event is not None else []
        state, batch = selector.next_batch(state)
        state = selector.observe(state, batch, jnp.zeros(12))
        batches.append(batch)
        work.append(state.work)
        excluded.append(state.excluded)
    assert [(e.step, e.excluded) for e in events if e.reason == "span_end"] == [(25, 0)]
    assert excluded[24] > 0
    assert set(excluded[25:]) == {0}
    assert events[-1].reason == "span_end", "windows are over, though all losses are low"
    assert work[24] == work[-1] != work[0], "nothing passes the model any more"
    assert state.num_unused == sum(e.coresets for e in events) - 25
    for step, batch in enumerate(batches):
        assert (np.ptp(np.asarray(batch.weights)) == 0) == (step >= 25)
        assert len(set(np.asarray(batch.indices).tolist())) == 12
    for batch in batches[25:]:
        assert np.bincount(batch.labels).tolist() == [6, 3, 3]
    rows = np.concatenate([batch.indices for batch in batches[25:33]])
    assert sorted(rows.tolist()) == list(range(COUNT)), "a pass over all examples"


def test_before_select_from_batches_are_random_and_losses_of_the_steps_exclude() -> None:
    config = changed(
        CONFIG,
        select_from=40,
        exclusion=exclusion(threshold=0.2, window=10, cooldown=1, keep_fraction=0.0),
    )
    selector = crest(linear, make_source(), config)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    events, batches, learned = [], [], np.arange(COUNT) % 4 == 0
    for _ in range(42):
        state, event = selector.refresh(state, make_params(), STATE)
        events += [event] if event is not None else []
        state, batch = selector.next_batch(state)
        losses = jnp.where(learned[np.asarray(batch.indices)], 0.1, 1.0)
        state = selector.observe(state, batch, losses)
        batches.append(batch)
    windows = [(e.step, e.excluded) for e in events if e.reason == "window"]
    assert windows[0] == (10, learned.sum())
    assert [step for step, _ in windows] == [10, 20, 30]
    assert next(e.reason for e in events if e.step >= 40) == "start"
    late = np.concatenate([batch.indices for batch in batches[20:30]])
    assert learned[late].any() != learned[np.concatenate([b.indices for b in batches[10:20]])].any()
    assert all(np.ptp(np.asarray(batch.weights)) == 0 for batch in batches[:40])
    assert state.work.selection_forward > 0


def test_before_select_from_batches_are_random_and_the_first_region_begins_there() -> None:
    config = changed(CONFIG, select_from=7, select_until=15, max_interval=4)
    selector = crest(linear, make_source(), config)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    begun = []
    for step in range(20):
        state, event = selector.refresh(state, make_params(), STATE)
        begun += [(event.step, event.reason)] if event is not None else []
        state, batch = selector.next_batch(state)
        assert (np.ptp(np.asarray(batch.weights)) > 0) == (7 <= step < 15)
        assert (state.work.selection_forward > 0) == (step >= 7)
    assert begun[0] == (7, "start")
    assert begun[-1] == (15, "span_end")


def test_no_more_coresets_are_selected_than_select_until_leaves_steps_for() -> None:
    config = changed(CONFIG, select_until=10, tau=1e6, max_interval=8, interval_multiplier=8)
    history = train(config, optax.sgd(0.1), 14)
    assert history[-1][0].num_selected == 10
    assert history[-1][0].num_unused == 0


def test_an_embedding_that_is_not_finite_is_found_at_the_next_check() -> None:
    source = make_source()
    inputs = np.asarray(source.take(jnp.arange(COUNT)).inputs).copy()
    inputs[17] = np.nan
    spoilt = ArraySource(inputs, source.labels)
    selector = crest(linear, spoilt, changed(CONFIG, probe_size=1))
    state = selector.init(jax.random.key(0), make_params(), STATE)

    def go(state: CrestState) -> None:
        for _ in range(40):
            state, _ = selector.refresh(state, make_params(), STATE)
            state, _ = selector.next_batch(state)

    with pytest.raises(FloatingPointError, match=r"NaN or infinite before step|probe rows is nan"):
        go(state)


def test_bad_examples_are_skipped_by_beginning_anew_where_that_is_asked_for() -> None:
    source = make_source()
    inputs = np.asarray(source.take(jnp.arange(COUNT)).inputs).copy()
    inputs[17] = np.nan
    spoilt = ArraySource(inputs, source.labels)
    config = changed(CONFIG, probe_size=8, nonfinite="skip")
    selector = crest(linear, spoilt, config)
    params = make_params()
    state = selector.init(jax.random.key(3), params, STATE)
    reasons = []
    for _ in range(60):
        state, event = selector.refresh(state, params, STATE)
        reasons += [] if event is None else [event.reason]
        state, batch = selector.next_batch(state)
        assert float(batch.weights.sum()) == config.subset_size, "a coreset also of what was bad"
        assert len(set(batch.indices.tolist())) == config.batch_size
    assert reasons[0] == "start"
    assert "nonfinite" in reasons
    assert "kept" in reasons, "regions without the bad example go on"
    for tree in (state.moments, state.region):
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def test_skipping_stops_when_three_anchors_in_a_row_are_bad() -> None:
    config = changed(CONFIG, nonfinite="skip")
    selector = crest(linear, make_source(), config)
    params = make_params() | {"b": jnp.full(CLASSES, jnp.nan)}
    tries = 0

    def phase(name: str, function: Any, *args: Any) -> Any:
        nonlocal tries
        tries += name == "check"
        return function(*args)

    selector = crest(linear, make_source(), config, phase=phase)
    state = selector.init(jax.random.key(0), params, STATE)
    with pytest.raises(FloatingPointError, match="probe rows is nan at step 0"):
        selector.refresh(state, params, STATE)
    assert tries == 3


def test_an_infinite_curvature_is_told_as_such() -> None:
    def apply_fn(params: Any, state: Any, inputs: Any, *, train: bool, rng: Any) -> tuple[Any, Any]:
        steep = params["b"] + 1e-20 * jnp.cos(1e30 * params["b"])  # second derivative of -1e40
        return inputs @ params["w"] + steep[None], state

    selector = crest(apply_fn, make_source(), CONFIG)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    with pytest.raises(FloatingPointError, match=r"curvature's norm is (nan|inf) at step 0"):
        selector.refresh(state, make_params(), STATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_with_a_sentence(value: float) -> None:
    selector = crest(linear, make_source(), CONFIG)
    params = make_params() | {"b": jnp.full(CLASSES, value)}
    state = selector.init(jax.random.key(0), params, STATE)
    with pytest.raises(FloatingPointError, match=r"probe rows is (nan|inf) at step 0 .*learning rate"):
        selector.refresh(state, params, STATE)


def test_backward_passes_of_an_embedding_are_counted() -> None:
    embed = sketched_gradients(jax.random.key(0), linear, 8)
    selector = crest(linear, make_source(), CONFIG, embed_fn=embed)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    state, event = selector.refresh(state, make_params(), STATE)
    assert event.coresets >= 1
    assert event.work.selection_backward == event.coresets * CONFIG.subset_size


def test_next_batch_before_refresh_is_refused() -> None:
    selector = crest(linear, make_source(), CONFIG)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    with pytest.raises(ValueError, match="call refresh before"):
        selector.next_batch(state)


@pytest.mark.parametrize("name", ["subset_size", "probe_size"])
def test_data_smaller_than_a_draw_are_refused(name: str) -> None:
    config = settings(**{"batch_size": 12, "subset_size": 36, "probe_size": 30, name: COUNT + 1})
    with pytest.raises(ValueError, match=f"{name} is {COUNT + 1} but the data hold {COUNT} examples"):
        crest(linear, make_source(), config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 257),
        ("subset_size", 1.5),
        ("max_coresets", -1),
        ("max_interval", 0),
        ("reference_step", -1),
        ("tau", 0.0),
        ("tau", float("nan")),
        ("interval_multiplier", float("inf")),
        ("coresets_per_interval", -1.0),
        ("select_from", -1),
        ("select_until", 0),
        ("exclusion", 0.02),
        ("smoothing", "ema"),
    ],
)
def test_config_refuses_values_that_break_their_rule(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}.* but must .*;"):
        settings(**({"subset_size": 256} | {field: value}))


class WithoutClasses:
    def __len__(self) -> int:
        return COUNT

    def take(self, indices: Any) -> Any:
        raise AssertionError("nothing is taken")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"source": (np.zeros((9, 2)), np.zeros(9, int))},
            "source is a tuple but .*; pass ArraySource",
        ),
        ({"source": np.zeros((9, 2))}, "source is a ndarray but must hand out examples"),
        (
            {"source": WithoutClasses()},
            "source is a WithoutClasses without classes but .*; set classes",
        ),
        ({"config": {"batch_size": 4}}, "config is a dict but must be a CrestConfig; pass"),
        ({"apply_fn": nn.Dense(3)}, "apply_fn is a Dense that cannot be called as .*; wrap a Flax"),
        ({"apply_fn": nnx.Linear(6, 3, rngs=nnx.Rngs(0))}, "apply_fn is a Linear .* from_nnx"),
        (
            {"source": ArraySource(np.zeros((COUNT, 6)), np.linspace(0.0, 1.0, COUNT))},
            "labels have dtype float64 but must be integers; .* or pass a loss_fn of your own",
        ),
        ({"apply_fn": nn.Dense}, "apply_fn is a type that cannot be called as"),
        ({"apply_fn": None}, "apply_fn is a NoneType that cannot be called as"),
    ],
)
def test_what_is_no_model_no_data_or_no_settings_is_refused_before_any_work(
    given: dict[str, Any], message: str
) -> None:
    usual = {"apply_fn": linear, "source": make_source(), "config": CONFIG}
    with pytest.raises(ValueError, match=message):
        crest(**(usual | given))


def test_labels_are_anything_with_a_loss_or_an_embedding_of_ones_own() -> None:
    source = ArraySource(np.zeros((COUNT, 6)), np.linspace(0.0, 1.0, COUNT))
    crest(linear, source, CONFIG, loss_fn=lambda logits, labels: labels)
    crest(linear, source, CONFIG, embed_fn=lambda params, state, rows: (rows.inputs, rows.labels))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_without_a_logit_is_named_where_coresets_are_fresh(
    batch_norm: bool, wrong: int
) -> None:
    inputs = np.asarray(make_source().take(jnp.arange(COUNT)).inputs)
    labels = np.where(np.arange(COUNT) == 5, wrong, make_source().labels)  # a single one
    config = CrestConfig.recommended(steps=10, batch_size=4, num_examples=COUNT, batch_norm=batch_norm)
    selector = crest(linear, ArraySource(inputs, labels), config)
    state = selector.init(jax.random.key(0), make_params(), STATE)
    with pytest.raises(ValueError, match=rf"est label is {wrong} but .* 3 logits"):
        selector.refresh(state, make_params(), STATE)


@pytest.mark.slow
def test_a_label_without_a_logit_is_named_before_anything_is_scored() -> None:
    inputs = np.asarray(make_source().take(jnp.arange(COUNT)).inputs)
    labels = np.where(np.arange(COUNT) == 5, 3, make_source().labels)  # a single one, seldom drawn
    for nonfinite in ("stop", "skip"):
        config = changed(CONFIG, nonfinite=nonfinite)
        selector = crest(linear, ArraySource(inputs, labels), config)
        state = selector.init(jax.random.key(0), make_params(), STATE)
        with pytest.raises(ValueError, match="highest label is 3 but the model returns 3 logits"):
            selector.refresh(state, make_params(), STATE)
    # More logits than classes are usual, and another loss may read its labels in another way.
    selector = crest(linear, ArraySource(inputs, labels % 2), CONFIG)
    selector.refresh(selector.init(jax.random.key(0), make_params(), STATE), make_params(), STATE)

    def distance(logits: Any, labels: Any) -> Any:
        return jnp.square(logits[:, 0] - labels.astype(jnp.float32))

    selector = crest(linear, ArraySource(inputs, labels), CONFIG, loss_fn=distance)
    selector.refresh(selector.init(jax.random.key(0), make_params(), STATE), make_params(), STATE)


def test_a_loss_or_an_embedding_that_is_not_one_for_each_example_is_refused() -> None:
    def mean(logits: Any, labels: Any) -> Any:
        return cross_entropy(logits, labels).mean()

    def short(params: Any, state: Any, examples: Any) -> Any:
        return examples.inputs[:5], examples.inputs[:, 0]

    for options, message in (
        ({"loss_fn": mean}, r"loss_fn returned losses of shape \(\) for 30 examples"),
        ({"embed_fn": short}, r"embed_fn returned embeddings of shape \[\(5, 6\)\] for 36 examples"),
    ):
        selector = crest(linear, make_source(), CONFIG, **options)
        state = selector.init(jax.random.key(0), make_params(), STATE)
        with pytest.raises(ValueError, match=message):
            selector.refresh(state, make_params(), STATE)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_bad_loss_of_a_step_is_told_when_its_window_ends(nonfinite: Any) -> None:
    config = changed(
        CONFIG,
        select_from=12,
        exclusion=exclusion(threshold=0.2, window=4, keep_fraction=0.0),
        nonfinite=nonfinite,
    )
    selector = crest(linear, make_source(), config)
    state = selector.init(jax.random.key(0), make_params(), STATE)

    def go(state: CrestState) -> tuple[int, int]:
        bad = -1
        for step in range(5):
            state, _ = selector.refresh(state, make_params(), STATE)
            state, batch = selector.next_batch(state)
            bad = int(batch.indices[3]) if step == 2 else bad
            losses = jnp.zeros(12).at[3].set(jnp.nan if step == 2 else 0.0)
            state = selector.observe(state, batch, losses)
        return bad, int(state.pool.exclusion.inactive.left_at[bad])

    if nonfinite == "stop":
        with pytest.raises(FloatingPointError, match=r"handed to observe was NaN .* before step 4 "):
            go(state)
    else:
        assert go(state)[1] == 0, "it is not learned"


# b, interval_multiplier, tau: regions of one step, or of many
@pytest.mark.parametrize(
    ("ratio", "multiplier", "tau"),
    [(1.0, 0.01, 1e-6), (3.0, 0.01, 1e-6), (0.5, 16.0, 1e6)],
)
def test_the_observations_of_every_window_are_remembered_and_not_many_more(
    ratio: float, multiplier: float, tau: float
) -> None:
    config = changed(
        CONFIG, coresets_per_interval=ratio, tau=tau, interval_multiplier=multiplier, max_interval=8,
        max_coresets=8, exclusion=exclusion(threshold=0.1, window=30), curvature="diagonal",
    )  # fmt: skip
    selector = crest(linear, make_source(), config)
    params = [jax.tree.map(lambda x, i=i: x + 0.1 * i, make_params()) for i in range(2)]
    state = selector.init(jax.random.key(0), params[0], STATE)
    most = 0
    for step in range(80):
        before = state.pool.window_end
        state, _ = selector.refresh(state, params[step % 2], STATE)
        most = max(most, int(state.pool.exclusion.num_observations))
        state, _ = selector.next_batch(state)
        assert before >= step - config.region.max_interval
    capacity = state.pool.exclusion.observations.shape[0]
    assert capacity == most_observations(config)
    assert most <= capacity
    if multiplier < 1:  # the worst case: every region ends after one step
        assert most > capacity / 2
