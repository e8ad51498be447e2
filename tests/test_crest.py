"""CREST as a whole: regions, exactness of the model, exclusion, counters, and its errors."""

import dataclasses
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crest_jax import (
    ArraySource,
    Batch,
    CrestConfig,
    crest,
    cross_entropy,
    fit,
    sketched_gradients,
    weighted_mean,
)
from crest_jax.crest import most_sightings
from crest_jax.state import CrestState

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
    return ArraySource(inputs.astype(np.float32), labels, CLASSES)


def make_params(seed: int = 0) -> dict[str, jax.Array]:
    w = 0.1 * jax.random.normal(jax.random.key(seed), (FEATURES, CLASSES))
    return {"w": w, "b": jnp.zeros(CLASSES)}


STATE = {"mean": jnp.zeros(FEATURES)}
CONFIG = CrestConfig(
    batch_size=12,
    subset_size=36,
    probe_size=30,
    max_coresets=8,
    exclude_below=0.0,
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
    selection = crest(linear, make_source(), config)
    step = make_step(tx, donate)
    params = jax.tree.map(jnp.copy, make_params())
    train_state = (params, jax.tree.map(jnp.copy, STATE), tx.init(params))
    state = selection.init(jax.random.key(1), *train_state[:2])
    history = []
    for _ in range(steps):
        state, event = selection.refresh(state, *train_state[:2])
        seen = jax.tree.map(np.array, train_state[:2])
        state, batch = selection.next_batch(state)
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


def test_error_is_exactly_zero_at_zero_step() -> None:
    history = train(CONFIG, optax.set_to_zero(), 12)
    # The running mean moves even when the parameters do not: freeze it for this test.
    selection = crest(linear, make_source(), CONFIG)
    state = selection.init(jax.random.key(1), make_params(), STATE)
    errors = []
    for _ in range(12):
        state, event = selection.refresh(state, make_params(), STATE)
        state, _ = selection.next_batch(state)
        if event is not None and event.rho is not None:
            errors.append(event.rho)
    assert len(errors) >= 2
    assert errors == [0.0] * len(errors)
    # Drift of the statistics is part of the error.
    drifted = [event.rho for _, event, *_ in history if event and event.rho is not None]
    assert max(drifted) > 0


def test_step_and_error_are_right_under_adamw_with_weight_decay() -> None:
    tx = optax.adamw(0.02, weight_decay=0.3)
    history = train(CONFIG, tx, 60)
    anchors, compared = {}, 0
    for state, event, params, model_state, _ in history:
        if event is None:
            continue
        if event.rho is not None:
            region, anchor = anchors["last"]
            delta = {name: np.float64(params[name]) - anchor[0][name] for name in params}
            start = probe_loss(*anchor, region.probe_rows)
            predicted = start + sum(
                np.vdot(region.gradient[name], delta[name])
                + 0.5 * np.vdot(delta[name], region.curvature[name] * delta[name])
                for name in params
            )
            now = probe_loss(params, model_state, region.probe_rows)
            assert event.rho == pytest.approx(abs(predicted - now) / now, rel=1e-3, abs=1e-5)
            assert event.loss == pytest.approx(
                probe_loss(params, model_state, state.region.probe_rows), rel=1e-5
            )
            compared += event.rho > 1e-3
        if event.reason != "held":
            anchors["last"] = (jax.tree.map(np.array, state.region), (params, model_state))
            for name in params:
                np.testing.assert_array_equal(state.region.anchor[name], params[name])
    assert compared >= 5
    assert history[-1][0].regions >= 3


def test_anchor_survives_a_step_that_donates_its_buffers() -> None:
    plain = train(CONFIG, optax.sgd(0.1, momentum=0.9), 20)
    donated = train(CONFIG, optax.sgd(0.1, momentum=0.9), 20, donate=True)
    for (_, _, a, _, x), (_, _, b, _, y) in zip(plain, donated, strict=True):
        np.testing.assert_array_equal(a["w"], b["w"])
        np.testing.assert_array_equal(x.rows, y.rows)


def test_each_batch_is_one_whole_coreset() -> None:
    history = train(CONFIG, optax.sgd(0.1), 30)
    counts = np.full(CLASSES, CONFIG.subset_size / CLASSES)
    for state, _, _, _, batch in history:
        rows = np.asarray(batch.rows)
        assert len(set(rows.tolist())) == CONFIG.batch_size
        per_class = np.bincount(batch.labels, weights=batch.weights, minlength=CLASSES)
        np.testing.assert_array_equal(per_class, counts)
        np.testing.assert_array_equal(batch.labels, rows % CLASSES)
        np.testing.assert_array_equal(state.rows[state.cursor - 1], rows)


def test_regions_checks_and_counters_agree() -> None:
    config = CrestConfig(
        batch_size=12, subset_size=36, probe_size=30, exclude_below=0.0, tau=0.25,
        coresets_per_interval=1.6, max_interval=5, max_coresets=8, hutchinson_probes=2,
        interval_multiplier=4.0,
    )  # fmt: skip
    history = train(config, optax.sgd(0.3, momentum=0.9), 60)
    events = [event for _, event, *_ in history if event is not None]
    assert events[0].reason == "start"
    assert {e.reason for e in events} == {"start", "error", "held"}
    regions = checks = curvatures = 0
    for event in events:
        began = event.reason != "held"
        regions += began
        checks += began + (event.rho is not None)
        curvatures += began
        assert event.region == regions
        assert (event.reason == "error") == (event.rho is not None and event.rho > config.tau)
        assert 1 <= event.interval <= config.max_interval
        if began:
            assert event.coresets == min(8, int(np.ceil(1.6 * event.interval)))
        assert event.work.check_forward == checks * config.probe_size
        assert event.work.selection_forward == event.selected * config.subset_size
        assert event.work.curvature_backward == curvatures * 3 * config.batch_size
    last = history[-1][0]
    assert last.selected == last.step + last.unused + last.held - last.cursor
    assert last.unused > 0


def test_exhausted_coresets_are_renewed_as_configured() -> None:
    def reasons(exhausted: Any) -> tuple[list[str], np.ndarray]:
        config = CrestConfig(
            batch_size=12, subset_size=36, probe_size=30, exclude_below=0.0, tau=1e5,
            max_interval=4, max_coresets=2, exhausted=exhausted,
        )  # fmt: skip
        history = train(config, optax.sgd(0.5), 24)
        events = [event for _, event, *_ in history if event is not None]
        return [e.reason for e in events], np.stack([b.rows for *_, b in history])

    assert set(reasons("reanchor")[0][1:]) >= {"exhausted"}
    current, anchor = reasons("current"), reasons("anchor")
    assert set(current[0][1:]) == set(anchor[0][1:]) == {"held"}
    np.testing.assert_array_equal(current[1][:2], anchor[1][:2])
    assert (current[1] != anchor[1]).any()


def test_learned_examples_leave_the_draws_and_return_when_a_class_runs_dry() -> None:
    labels = np.arange(COUNT) % CLASSES
    # Class 0 is learned whole, class 1 in part; logits do not depend on the parameters.
    margin = np.where((labels == 0) | ((labels == 1) & (np.arange(COUNT) < 48)), 9.0, 0.1)

    def fixed(params: Any, model_state: Any, inputs: Any, *, train: bool, rng: Any) -> Any:
        return inputs + 0 * params, model_state

    logits = margin[:, None] * np.eye(CLASSES)[labels]
    source = ArraySource(logits.astype(np.float32), labels, CLASSES)
    config = CrestConfig(
        batch_size=12, subset_size=36, probe_size=30, max_interval=2, exclude_window=40,
        exclude_below=0.1, exclude_for=1, exclude_keep=0.0,
    )  # fmt: skip
    selection = crest(fixed, source, config)
    params = jnp.zeros(())
    state = selection.init(jax.random.key(0), params, {})
    seen: list[set[int]] = [set(), set(), set()]
    excluded = []
    for step in range(120):
        state, event = selection.refresh(state, params, {})
        state, batch = selection.next_batch(state)
        seen[step // 40].update(np.asarray(batch.rows).tolist())
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


def test_learned_examples_kept_in_play_count_for_those_left_out() -> None:
    labels = np.repeat(np.arange(CLASSES), [48, 24, 24])
    learned = np.arange(COUNT) % 2 == 0

    def fixed(params: Any, model_state: Any, inputs: Any, *, train: bool, rng: Any) -> Any:
        return inputs + 0 * params, model_state

    margin = np.where(learned, 9.0, 0.5) + np.random.default_rng(0).random(COUNT)
    logits = margin[:, None] * np.eye(CLASSES)[labels]
    source = ArraySource(logits.astype(np.float32), labels, CLASSES)
    config = CrestConfig(
        batch_size=12, subset_size=24, probe_size=30, max_interval=2, exclude_window=20,
        exclude_below=0.1, exclude_for=None, exclude_keep=0.25, select_from=100,
    )  # fmt: skip
    selection = crest(fixed, source, config)
    params = jnp.zeros(())
    state = selection.init(jax.random.key(0), params, {})
    total = {"coreset": [], "random": []}
    for step in range(200):
        state, _ = selection.refresh(state, params, {})
        state, batch = selection.next_batch(state)
        rows, weights = np.asarray(batch.rows), np.asarray(batch.weights)
        state = selection.observe(state, batch, jnp.where(learned[rows], 0.0, 1.0))
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
    config = dataclasses.replace(CONFIG, curvature_of="^b$", exclude_below=0.0)
    events = [event for _, event, *_ in train(config, optax.sgd(0.1), 30) if event is not None]
    assert events[-1].region > 1
    selection = crest(linear, make_source(), config)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    state, event = selection.refresh(state, make_params(), STATE)
    assert state.region.curvature["w"] is None
    assert float(jnp.abs(state.region.gradient["w"]).max()) > 0
    norm = float(jnp.linalg.norm(state.region.curvature["b"]))
    assert event is not None
    assert event.curvature_norm == pytest.approx(norm) != 0
    with pytest.raises(ValueError, match="curvature_of is 'x'"):
        crest(linear, make_source(), dataclasses.replace(CONFIG, curvature_of="x")).init(
            jax.random.key(0), make_params(), STATE
        )


@pytest.mark.parametrize(
    ("smoothing", "exhausted", "more"),
    [
        ("signed", "current", {}),
        ("paper", "anchor", {"reshuffle": True}),
        ("none", "reanchor", {"reuse": 2}),
    ],
)
def test_nothing_compiles_after_the_first_region(smoothing: Any, exhausted: Any, more: Any) -> None:
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    config = CrestConfig(
        batch_size=12, subset_size=36, probe_size=30, exclude_below=0.3, exclude_window=7,
        tau=0.02, interval_multiplier=1.0, max_interval=16, coresets_per_interval=1.3,
        smoothing=smoothing, exhausted=exhausted, **more,
    )  # fmt: skip
    tx = optax.sgd(0.3, momentum=0.9)
    selection, step = crest(linear, make_source(), config), make_step(tx)
    train_state = (make_params(), STATE, tx.init(make_params()))
    state = selection.init(jax.random.key(1), *train_state[:2])
    while state.regions < 2:  # through the first region and its check
        state, _ = selection.refresh(state, *train_state[:2])
        state, batch = selection.next_batch(state)
        train_state, _ = step(train_state, batch)
    intervals, excluded = set(), set()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(80):
            state, _ = selection.refresh(state, *train_state[:2])
            state, batch = selection.next_batch(state)
            train_state, _ = step(train_state, batch)
            intervals.add(state.interval)
            excluded.add(state.excluded)
        assert compiled == []
        jax.jit(lambda x: x + state.step)(1.0)
        assert compiled, "the listener must be able to see a compilation"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert state.regions >= 6
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
    assert events[-1].region >= 2


def test_a_missing_class_and_a_class_of_one_example_are_no_obstacle() -> None:
    labels = np.where(np.arange(COUNT) == 5, 0, 2)  # class 1 is missing, class 0 has one example
    source = ArraySource(make_source().take(jnp.arange(COUNT)).inputs, labels, CLASSES)
    config = dataclasses.replace(CONFIG, exclude_below=5.0, exclude_window=4)
    selection = crest(linear, source, config)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    seen = set()
    for _ in range(24):
        state, _ = selection.refresh(state, make_params(), STATE)
        state, batch = selection.next_batch(state)
        assert float(batch.weights.sum()) == CONFIG.subset_size
        seen.update(np.asarray(batch.labels).tolist())
    assert 2 in seen
    assert 1 not in seen


def test_unweighted_batches_have_weight_one() -> None:
    config = CrestConfig(batch_size=12, subset_size=36, probe_size=30, weighted=False)
    batch = train(config, optax.sgd(0.1), 1)[0][-1]
    np.testing.assert_array_equal(batch.weights, np.ones(12))


def test_after_both_ends_batches_are_random_ones_of_all_examples_and_nothing_is_scored() -> None:
    labels = np.repeat(np.arange(CLASSES), [48, 24, 24])
    source = make_source(labels=labels)
    config = dataclasses.replace(
        CONFIG, select_until=25, max_interval=2, exclude_below=1.0, exclude_window=10, exclude_keep=0.0,
        exclude_until=25,
    )  # fmt: skip
    selection = crest(linear, source, config)
    params = make_params()
    state = selection.init(jax.random.key(0), params, STATE)
    events, batches, work, excluded = [], [], [], []
    for _ in range(49):
        state, event = selection.refresh(state, params, STATE)
        again, second = selection.refresh(state, params, STATE)
        if state.step >= 25:
            assert second is None
            assert again.held == 0
        events += [event] if event is not None else []
        state, batch = selection.next_batch(state)
        state = selection.observe(state, batch, jnp.zeros(12))
        batches.append(batch)
        work.append(state.work)
        excluded.append(state.excluded)
    assert [(e.step, e.excluded) for e in events if e.reason == "random"] == [(25, 0)]
    assert excluded[24] > 0
    assert set(excluded[25:]) == {0}
    assert events[-1].reason == "random", "windows are over, though all losses are low"
    assert work[24] == work[-1] != work[0], "nothing passes the model any more"
    assert state.unused == sum(e.coresets for e in events) - 25
    for step, batch in enumerate(batches):
        assert (np.ptp(np.asarray(batch.weights)) == 0) == (step >= 25)
        assert len(set(np.asarray(batch.rows).tolist())) == 12
    for batch in batches[25:]:
        assert np.bincount(batch.labels).tolist() == [6, 3, 3]
    rows = np.concatenate([batch.rows for batch in batches[25:33]])
    assert sorted(rows.tolist()) == list(range(COUNT)), "a pass over all examples"


def test_before_select_from_batches_are_random_and_losses_of_the_steps_exclude() -> None:
    config = dataclasses.replace(
        CONFIG, select_from=40, exclude_below=0.2, exclude_window=10, exclude_for=1, exclude_keep=0.0
    )
    selection = crest(linear, make_source(), config)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    events, batches, learned = [], [], np.arange(COUNT) % 4 == 0
    for _ in range(42):
        state, event = selection.refresh(state, make_params(), STATE)
        events += [event] if event is not None else []
        state, batch = selection.next_batch(state)
        losses = jnp.where(learned[np.asarray(batch.rows)], 0.1, 1.0)
        state = selection.observe(state, batch, losses)
        batches.append(batch)
    windows = [(e.step, e.excluded) for e in events if e.reason == "window"]
    assert windows[0] == (10, learned.sum())
    assert [step for step, _ in windows] == [10, 20, 30]
    assert next(e.reason for e in events if e.step >= 40) == "start"
    late = np.concatenate([batch.rows for batch in batches[20:30]])
    assert learned[late].any() != learned[np.concatenate([b.rows for b in batches[10:20]])].any()
    assert all(np.ptp(np.asarray(batch.weights)) == 0 for batch in batches[:40])
    assert state.work.selection_forward > 0


def test_before_select_from_batches_are_random_and_the_first_region_begins_there() -> None:
    config = dataclasses.replace(CONFIG, select_from=7, select_until=15, max_interval=4)
    selection = crest(linear, make_source(), config)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    begun = []
    for step in range(20):
        state, event = selection.refresh(state, make_params(), STATE)
        begun += [(event.step, event.reason)] if event is not None else []
        state, batch = selection.next_batch(state)
        assert (np.ptp(np.asarray(batch.weights)) > 0) == (7 <= step < 15)
        assert (state.work.selection_forward > 0) == (step >= 7)
    assert begun[0] == (7, "start")
    assert begun[-1] == (15, "random")


def test_no_more_coresets_are_selected_than_select_until_leaves_steps_for() -> None:
    config = dataclasses.replace(
        CONFIG, select_until=10, tau=1e6, max_interval=8, interval_multiplier=8
    )
    history = train(config, optax.sgd(0.1), 14)
    assert history[-1][0].selected == 10
    assert history[-1][0].unused == 0


def test_each_coreset_serves_as_many_steps_as_asked_in_turn() -> None:
    config = dataclasses.replace(CONFIG, reuse=3, tau=1e6, exhausted="reanchor", max_interval=6)
    history = train(config, optax.sgd(0.1), 36)
    begun = [k for k, (_, event, *_) in enumerate(history) if event and event.reason != "held"]
    assert len(begun) >= 3
    for first, last in zip(begun, [*begun[1:], len(history)], strict=True):
        rows = [tuple(batch.rows.tolist()) for *_, batch in history[first:last]]
        held = history[first][1].coresets
        if last < len(history):
            assert len(rows) == 3 * held
        assert len(set(rows[:held])) == held
        assert all(rows[k] == rows[k % held] for k in range(len(rows)))
    state = history[-1][0]
    assert state.work.selection_forward == state.selected * config.subset_size
    assert state.selected < 36 / 2


def test_reshuffled_batches_cut_the_union_of_the_coresets() -> None:
    config = dataclasses.replace(CONFIG, reshuffle=True, tau=1e6, exhausted="reanchor")
    plain = dataclasses.replace(config, reshuffle=False)
    for settings, whole in ((config, False), (plain, True)):
        history = train(settings, optax.sgd(0.1), 40)
        begun = [k for k, (_, event, *_) in enumerate(history) if event and event.reason != "held"]
        sums, balanced = [], True
        for first, last in pairwise(begun):
            union = [batch for *_, batch in history[first:last]]
            assert len(union) == history[first][1].coresets > 1
            sums.append(sum(float(batch.weights.sum()) for batch in union) / len(union))
            balanced &= all(batch.weights.sum() == config.subset_size for batch in union)
        np.testing.assert_allclose(sums, config.subset_size)
        assert balanced == whole


def test_an_embedding_that_is_not_finite_is_found_at_the_next_check() -> None:
    source = make_source()
    inputs = np.asarray(source.take(jnp.arange(COUNT)).inputs).copy()
    inputs[17] = np.nan
    spoilt = ArraySource(inputs, source.labels, CLASSES)
    selection = crest(linear, spoilt, dataclasses.replace(CONFIG, probe_size=1))
    state = selection.init(jax.random.key(0), make_params(), STATE)

    def go(state: CrestState) -> None:
        for _ in range(40):
            state, _ = selection.refresh(state, make_params(), STATE)
            state, _ = selection.next_batch(state)

    with pytest.raises(FloatingPointError, match=r"NaN or infinite before step|probe rows is nan"):
        go(state)


def test_bad_examples_are_skipped_by_beginning_anew_where_that_is_asked_for() -> None:
    source = make_source()
    inputs = np.asarray(source.take(jnp.arange(COUNT)).inputs).copy()
    inputs[17] = np.nan
    spoilt = ArraySource(inputs, source.labels, CLASSES)
    config = dataclasses.replace(CONFIG, probe_size=8, nonfinite="skip")
    selection = crest(linear, spoilt, config)
    params = make_params()
    state = selection.init(jax.random.key(0), params, STATE)
    reasons = []
    for _ in range(60):
        state, event = selection.refresh(state, params, STATE)
        reasons += [] if event is None else [event.reason]
        state, batch = selection.next_batch(state)
        assert float(batch.weights.sum()) == config.subset_size, "a coreset also of what was bad"
        assert len(set(batch.rows.tolist())) == config.batch_size
    assert reasons[0] == "start"
    assert "nonfinite" in reasons
    assert "held" in reasons, "regions without the bad example go on"
    for tree in (state.moments, state.region):
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def test_skipping_stops_when_three_anchors_in_a_row_are_bad() -> None:
    config = dataclasses.replace(CONFIG, nonfinite="skip")
    selection = crest(linear, make_source(), config)
    params = make_params() | {"b": jnp.full(CLASSES, jnp.nan)}
    tries = 0

    def phase(name: str, function: Any, *args: Any) -> Any:
        nonlocal tries
        tries += name == "check"
        return function(*args)

    selection = crest(linear, make_source(), config, phase=phase)
    state = selection.init(jax.random.key(0), params, STATE)
    with pytest.raises(FloatingPointError, match="probe rows is nan at step 0"):
        selection.refresh(state, params, STATE)
    assert tries == 3


def test_an_infinite_curvature_is_told_as_such() -> None:
    def apply_fn(params: Any, state: Any, inputs: Any, *, train: bool, rng: Any) -> tuple[Any, Any]:
        steep = params["b"] + 1e-20 * jnp.cos(1e30 * params["b"])  # second derivative of -1e40
        return inputs @ params["w"] + steep[None], state

    selection = crest(apply_fn, make_source(), CONFIG)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    with pytest.raises(FloatingPointError, match=r"curvature's norm is (nan|inf) at step 0"):
        selection.refresh(state, make_params(), STATE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_with_a_sentence(value: float) -> None:
    selection = crest(linear, make_source(), CONFIG)
    params = make_params() | {"b": jnp.full(CLASSES, value)}
    state = selection.init(jax.random.key(0), params, STATE)
    with pytest.raises(FloatingPointError, match=r"probe rows is (nan|inf) at step 0 .*learning rate"):
        selection.refresh(state, params, STATE)


def test_backward_passes_of_an_embedding_are_counted() -> None:
    embed = sketched_gradients(jax.random.key(0), linear, 8)
    selection = crest(linear, make_source(), CONFIG, embed_fn=embed)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    state, event = selection.refresh(state, make_params(), STATE)
    assert event.coresets >= 1
    assert event.work.selection_backward == event.coresets * CONFIG.subset_size


def test_scoring_in_chunks_chooses_the_same_batches() -> None:
    whole, chunked = (
        train(dataclasses.replace(CONFIG, scoring_chunk=chunk), optax.sgd(0.1), 6) for chunk in (36, 10)
    )
    for (*_, x), (*_, y) in zip(whole, chunked, strict=True):
        np.testing.assert_array_equal(x.rows, y.rows)


def test_next_batch_before_refresh_is_refused() -> None:
    selection = crest(linear, make_source(), CONFIG)
    state = selection.init(jax.random.key(0), make_params(), STATE)
    with pytest.raises(ValueError, match="call refresh before"):
        selection.next_batch(state)


@pytest.mark.parametrize("name", ["subset_size", "probe_size"])
def test_data_smaller_than_a_draw_are_refused(name: str) -> None:
    config = CrestConfig(**{"batch_size": 12, "subset_size": 36, "probe_size": 30, name: COUNT + 1})
    with pytest.raises(ValueError, match=f"{name} is {COUNT + 1} but the data hold {COUNT} examples"):
        crest(linear, make_source(), config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 513),
        ("subset_size", 1.5),
        ("max_coresets", -1),
        ("scoring_chunk", 0),
        ("max_interval", 0),
        ("curvature_coresets", 17),
        ("reference_step", -1),
        ("tau", 0.0),
        ("tau", float("nan")),
        ("interval_multiplier", float("inf")),
        ("coresets_per_interval", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("exclude_below", -1.0),
        ("exclude_window", 0),
        ("exclude_for", 0),
        ("exclude_for", 128),
        ("smoothing", "ema"),
        ("exhausted", "stop"),
    ],
)
def test_config_refuses_values_that_break_their_rule(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}.* but must .*;"):
        CrestConfig(**{field: value})


def test_a_label_without_a_logit_is_named_before_anything_is_scored() -> None:
    inputs = np.asarray(make_source().take(jnp.arange(COUNT)).inputs)
    labels = np.where(np.arange(COUNT) == 5, 3, make_source().labels)  # a single one, seldom drawn
    for nonfinite in ("stop", "skip"):
        config = dataclasses.replace(CONFIG, nonfinite=nonfinite)
        selection = crest(linear, ArraySource(inputs, labels), config)
        state = selection.init(jax.random.key(0), make_params(), STATE)
        with pytest.raises(ValueError, match="highest label is 3 but the model returns 3 logits"):
            selection.refresh(state, make_params(), STATE)
    # More logits than classes are usual, and another loss may read its labels in another way.
    selection = crest(linear, ArraySource(inputs, labels % 2), CONFIG)
    selection.refresh(selection.init(jax.random.key(0), make_params(), STATE), make_params(), STATE)

    def distance(logits: Any, labels: Any) -> Any:
        return jnp.square(logits[:, 0] - labels.astype(jnp.float32))

    selection = crest(linear, ArraySource(inputs, labels), CONFIG, loss_fn=distance)
    selection.refresh(selection.init(jax.random.key(0), make_params(), STATE), make_params(), STATE)


def test_a_loss_or_an_embedding_that_is_not_one_for_each_example_is_refused() -> None:
    def mean(logits: Any, labels: Any) -> Any:
        return cross_entropy(logits, labels).mean()

    def short(params: Any, state: Any, examples: Any) -> Any:
        return examples.inputs[:5], examples.inputs[:, 0]

    for options, message in (
        ({"loss_fn": mean}, r"loss_fn returned losses of shape \(\) for 30 examples"),
        ({"embed_fn": short}, r"embed_fn returned embeddings of shape \[\(5, 6\)\] for 36 examples"),
    ):
        selection = crest(linear, make_source(), CONFIG, **options)
        state = selection.init(jax.random.key(0), make_params(), STATE)
        with pytest.raises(ValueError, match=message):
            selection.refresh(state, make_params(), STATE)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_bad_loss_of_a_step_is_told_when_its_window_ends(nonfinite: Any) -> None:
    config = dataclasses.replace(
        CONFIG,
        select_from=12,
        exclude_below=0.2,
        exclude_window=4,
        exclude_keep=0.0,
        nonfinite=nonfinite,
    )
    selection = crest(linear, make_source(), config)
    state = selection.init(jax.random.key(0), make_params(), STATE)

    def go(state: CrestState) -> tuple[int, int]:
        bad = -1
        for step in range(5):
            state, _ = selection.refresh(state, make_params(), STATE)
            state, batch = selection.next_batch(state)
            bad = int(batch.rows[3]) if step == 2 else bad
            losses = jnp.zeros(12).at[3].set(jnp.nan if step == 2 else 0.0)
            state = selection.observe(state, batch, losses)
        return bad, int(state.exclusion.rest[bad])

    if nonfinite == "stop":
        with pytest.raises(FloatingPointError, match=r"handed to observe was NaN .* before step 4 "):
            go(state)
    else:
        assert go(state)[1] == 0, "it is not learned"


# b, reuse, curvature_coresets, interval_multiplier, tau: regions of one step, or of many
@pytest.mark.parametrize(
    ("ratio", "reuse", "first", "multiplier", "tau"),
    [
        (1.0, 1, 1, 0.01, 1e-6),
        (3.0, 1, 1, 0.01, 1e-6),
        (4.0, 4, 1, 0.01, 1e-6),
        (1.0, 1, 3, 0.01, 1e-6),
        (2.0, 2, 1, 16.0, 1e-6),
        (1.0, 2, 1, 16.0, 1e6),
        (0.5, 1, 1, 16.0, 1e6),
    ],
)
def test_the_sightings_of_every_window_are_remembered_and_not_many_more(
    ratio: float, reuse: int, first: int, multiplier: float, tau: float
) -> None:
    config = dataclasses.replace(
        CONFIG, coresets_per_interval=ratio, reuse=reuse, curvature_coresets=first, tau=tau,
        interval_multiplier=multiplier, exclude_below=0.1, exclude_window=30, max_interval=8,
        max_coresets=8,
    )  # fmt: skip
    selection = crest(linear, make_source(), config)
    params = [jax.tree.map(lambda x, i=i: x + 0.1 * i, make_params()) for i in range(2)]
    state = selection.init(jax.random.key(0), params[0], STATE)
    most = 0
    for step in range(80):
        before = state.window_end
        state, _ = selection.refresh(state, params[step % 2], STATE)
        most = max(most, int(state.exclusion.logged))
        state, _ = selection.next_batch(state)
        assert before >= step - config.max_interval
    capacity = state.exclusion.log.shape[0]
    assert capacity == most_sightings(config)
    assert most <= capacity
    if multiplier < 1:  # the worst case: every region ends after one step
        assert most > capacity / 2
