"""The loop against one written by hand, evaluation against NumPy, and the random methods."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import init_mlp, mlp, numpy_cross_entropy, numpy_mlp
from small_settings import exclusion, settings

from crest_jax import (
    ArraySource,
    HostSource,
    crest,
    cross_entropy,
    dynamic_pruning,
    fit,
    loop,
    make_evaluate,
    random_batches,
    stratified_batches,
)
from crest_jax.gradients import weighted_mean
from crest_jax.loop import accuracy, several_steps, view

N, BATCH = 24, 6
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


class TrainState(NamedTuple):
    params: list
    optimizer: tuple


def make_source(n=N, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return ArraySource(np.float32(rng.normal(size=(n, 4)) + labels[:, None]), labels)


@jax.jit
def train_step(state, batch):
    def loss(params):
        logits, _ = mlp(params, {}, batch.inputs, train=False, rng=None)
        return weighted_mean(cross_entropy(logits, batch.labels), batch.weights)

    value, gradient = jax.value_and_grad(loss)(state.params)
    updates, optimizer = OPTIMIZER.update(gradient, state.optimizer, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer), value


def start():
    params = init_mlp(3, 4, 5, 3)
    return TrainState(params, OPTIMIZER.init(params))


def crest_selection(source):
    config = settings(
        batch_size=BATCH, subset_size=12, probe_size=12, max_coresets=3, max_interval=3, tau=0.01
    )
    return crest(mlp, source, config)


SELECTIONS = {
    "random": lambda source: random_batches(source, BATCH),
    "stratified": lambda source: stratified_batches(source, BATCH),
    "crest": crest_selection,
}


def assert_close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tree, other)


def assert_same(tree, other):
    leaves, others = jax.tree.leaves(tree), jax.tree.leaves(other)
    assert len(leaves) == len(others) > 0
    for one, two in zip(leaves, others, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


@pytest.mark.parametrize("name", SELECTIONS)
def test_fit_equals_a_loop_written_by_hand(name):
    steps, source = 10, make_source()
    selection = SELECTIONS[name](source)
    events, metrics = [], []
    fitted = fit(
        selection,
        train_step,
        start(),
        key=jax.random.key(1),
        steps=steps,
        on_event=events.append,
        on_step=lambda step, value: metrics.append((step, float(value))),
    )
    train_state, own_events, own_metrics = start(), [], []
    state = selection.init(jax.random.key(1), train_state.params, {})
    for step in range(steps):
        state, event = selection.refresh(state, train_state.params, {})
        own_events += [event] if event is not None else []
        state, batch = selection.next_batch(state)
        train_state, value = train_step(train_state, batch)
        own_metrics.append((step, float(value)))
    assert_same(fitted, train_state)
    assert metrics == own_metrics
    assert len(metrics) == steps
    assert repr(events) == repr(own_events)
    assert (len(events) > 1) == (name == "crest")
    other = fit(selection, train_step, start(), key=jax.random.key(2), steps=steps)
    assert np.asarray(other.params[0][0]).tolist() != np.asarray(fitted.params[0][0]).tolist()


class Plain:
    """A source of one's own, with no more than a source must have."""

    def __init__(self, source):
        self.held, self.classes = source, source.classes

    def __len__(self):
        return len(self.held)

    def take(self, indices):
        assert indices.ndim == 1
        return self.held.take(indices)


def counting(monkeypatch):
    """Count the programs of several steps."""
    lengths, several = [], loop.several_steps

    def counted(selection, step, state, train_state, number, **more):
        lengths.append(number)
        return several(selection, step, state, train_state, number, **more)

    monkeypatch.setattr(loop, "several_steps", counted)
    return lengths


@pytest.mark.parametrize("kind", ["arrays", "own", "reads ahead"])
def test_many_steps_are_one_program_where_no_row_is_read_on_the_host(kind, monkeypatch):
    source = make_source()
    if kind == "own":
        source = Plain(source)
    elif kind == "reads ahead":
        rows = source.take(np.arange(N))
        source = HostSource(np.asarray(rows.inputs), np.asarray(rows.labels))
    lengths = counting(monkeypatch)
    first = start()
    options = {"key": jax.random.key(2), "steps": 79}
    selection = stratified_batches(source, BATCH)
    many = fit(selection, train_step, first, scan=32, **options)
    assert lengths == ([32, 32, 8, 4, 2, 1] if kind == "arrays" else [])
    assert_close(many, fit(selection, train_step, first, **options))  # the state given is not donated
    assert len(lengths) in (0, 6)  # on a CPU a step is a program


def test_steps_are_put_together_by_themselves_on_accelerators_where_jit_traces_them(monkeypatch):
    monkeypatch.setattr(loop, "on_accelerator", lambda tree: len(jax.tree.leaves(tree)) > 0)
    lengths = counting(monkeypatch)
    options = {"key": jax.random.key(2), "steps": 40}
    fit(stratified_batches(make_source(), BATCH), train_step, start(), **options)
    assert lengths == [32, 8]
    seen = []

    def own(state, batch):  # what it does besides would be lost
        seen.append(float(batch.weights.sum()))
        return train_step(state, batch)

    fit(stratified_batches(make_source(), BATCH), own, start(), **options)
    assert lengths == [32, 8]
    assert len(seen) == 40


@pytest.mark.parametrize(
    ("scan", "message"),
    [(0, "scan is 0 but must be an integer of at least 1"), ("all", "scan is 'all' but must be")],
)
def test_fit_refuses_a_bad_number_of_steps_in_a_program(scan, message):
    selection = stratified_batches(make_source(), BATCH)
    with pytest.raises(ValueError, match=message):
        fit(selection, train_step, start(), key=jax.random.key(0), steps=3, scan=scan)


def test_quiet_steps_end_at_the_check_where_more_coresets_are_held():
    config = settings(
        batch_size=BATCH, subset_size=12, probe_size=12, max_coresets=12, max_interval=3,
        interval_multiplier=9.0, coresets_per_interval=2,
    )  # fmt: skip
    selection, (params, _) = crest(mlp, make_source(), config), start()
    state, event = selection.refresh(selection.init(jax.random.key(0), params, {}), params, {})
    assert event.coresets == 2 * event.interval == 6
    assert selection.traced.quiet(state) == state.next_check - state.step == 3
    for _ in range(2):
        state, _ = selection.next_batch(state)
    assert selection.traced.quiet(state) == 1


def test_a_mini_batch_is_refused_where_no_coreset_is_left():
    selection, (params, _) = crest_selection(make_source()), start()
    state, _ = selection.refresh(selection.init(jax.random.key(0), params, {}), params, {})
    for _ in range(state.buffer.num_coresets):
        state, _ = selection.next_batch(state)
    with pytest.raises(ValueError, match=r"next mini-batch was asked for with 3 of 3 .* call refresh"):
        selection.next_batch(state)


def test_steps_in_one_program_are_refused_where_mini_batches_need_the_host():
    rows = make_source().take(np.arange(N))
    source = HostSource(np.asarray(rows.inputs), np.asarray(rows.labels))
    selection = stratified_batches(source, BATCH)
    state = selection.init(jax.random.key(0), None, None)
    with pytest.raises(ValueError, match=r"traced is None, .* take single steps, or hold the data in"):
        several_steps(selection, train_step, state, start(), 2)


def test_fit_hands_the_losses_of_every_step_back():
    def observing(selection):
        def observe(state, batch, losses):
            seen.append((np.asarray(batch.indices).tolist(), losses))
            return selection.observe(state, batch, losses)

        return selection._replace(observe=observe)

    def step(state, batch):
        return state, {"losses": np.asarray(batch.indices) * 2.0}

    for losses, calls in ((lambda metrics: metrics["losses"], 3), (None, 0)):
        seen = []
        fit(
            observing(random_batches(make_source(), BATCH)),
            step,
            start(),
            key=jax.random.key(0),
            steps=3,
            view=lambda state: (state.params, {}),
            losses=losses,
        )
        assert len(seen) == calls
        assert all(values.tolist() == [2.0 * row for row in rows] for rows, values in seen)


def test_dynamically_pruned_batches_leave_out_what_the_steps_have_learned_and_take_it_back():
    source = make_source(40)
    learned = np.arange(40) % 5 == 0  # rows whose loss is always low
    selection = dynamic_pruning(
        source, 10, exclusion(threshold=0.1, window=12, cooldown=2, keep_fraction=0.0)
    )
    state = selection.init(jax.random.key(0), None, None)
    seen = []
    for step in range(60):
        state, event = selection.refresh(state, None, None)
        assert event is None
        assert state.excluded == (0 if step < 12 or 36 <= step < 48 else learned.sum())
        state, batch = selection.next_batch(state)
        rows = np.asarray(batch.indices)
        assert len(set(rows.tolist())) == 10
        seen.append(rows)
        # A loss is low once by chance: one high sighting in the window keeps the row in play.
        losses = np.where(learned[rows], 0.05, 0.05 if step % 12 == 0 else 0.5)
        state = selection.observe(state, batch, jnp.float32(losses))
    inside = [learned[rows].any() for rows in seen]
    assert not any(inside[12:36])
    assert any(inside[:12])
    assert any(inside[36:48]), "they return after two windows"
    shares = np.bincount(source.labels[np.concatenate(seen[12:36])], minlength=3) / 240
    active = np.bincount(source.labels[~learned], minlength=3) / (~learned).sum()
    np.testing.assert_allclose(shares, active, atol=0.02)


def test_dynamically_pruned_batches_keep_some_of_the_learned_for_all_of_them():
    learned = np.arange(200) % 2 == 0
    selection = dynamic_pruning(
        make_source(200), 10, exclusion(threshold=0.1, window=30, cooldown=None)
    )
    state = selection.init(jax.random.key(0), None, None)
    weights, out = [], []
    for step in range(240):
        state, _ = selection.refresh(state, None, None)
        state, batch = selection.next_batch(state)
        rows = np.asarray(batch.indices)
        state = selection.observe(state, batch, jnp.where(learned[rows], 0.05, 0.5))
        if step >= 60:
            assert state.excluded == 100
            weights.append(np.asarray(batch.weights))
            out.append(learned[rows])
    weights, out = np.concatenate(weights), np.concatenate(out)
    assert weights.tolist() == np.where(out, 4.0, 1.0).tolist()
    assert out.mean() == pytest.approx(25 / 125, abs=0.03)
    assert weights[out].sum() / weights.sum() == pytest.approx(0.5, abs=0.04)


def test_dynamically_pruned_batches_of_all_classes_alike_and_without_losses():
    selection = dynamic_pruning(make_source(), BATCH, exclusion(window=2), stratified=False)
    state = selection.init(jax.random.key(0), None, None)
    counts = []
    for _ in range(2):
        state, batch = selection.next_batch(state)
        counts.append(np.bincount(batch.labels, minlength=3).tolist())
    assert counts != [[2, 2, 2], [2, 2, 2]], "plain random batches are not stratified"
    with pytest.raises(
        ValueError,
        match=r"no losses were handed back in the window before step 2 .* pass losses",
    ):
        selection.refresh(state, None, None)


def test_fit_reads_the_model_through_the_view():
    seen = []

    def reading(selection):
        def refresh(state, params, model_state):
            seen.append((params, model_state))
            return state, None

        return selection._replace(refresh=refresh)

    selection = reading(random_batches(make_source(), BATCH))
    total = fit(
        selection,
        lambda state, batch: (state + 1, None),
        10,
        key=jax.random.key(0),
        steps=3,
        view=lambda state: (-state, {"twice": 2 * state}),
    )
    assert total == 13
    assert seen == [(-10, {"twice": 20}), (-11, {"twice": 22}), (-12, {"twice": 24})]


def test_the_default_view_reads_statistics_where_there_are_any():
    class WithStatistics(NamedTuple):
        params: int
        batch_stats: dict

    assert view(WithStatistics(1, {"mean": 2})) == (1, {"batch_stats": {"mean": 2}})
    assert view(WithStatistics(1, {})) == (1, {"batch_stats": {}})
    assert view(TrainState(3, ())) == (3, {})


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_fit_refuses_a_bad_number_of_steps(steps):
    selection = random_batches(make_source(), BATCH)
    with pytest.raises(ValueError, match=f"steps is {steps} but must be.*; pass a positive"):
        fit(selection, train_step, start(), key=jax.random.key(0), steps=steps)


@pytest.mark.parametrize(("count", "chunk_size"), [(23, 5), (20, 5), (3, 5), (1, 5)])
def test_evaluation_matches_numpy_on_every_row(count, chunk_size):
    source, params, traces = make_source(count, seed=1), init_mlp(4, 4, 5, 3), []

    def model(params, model_state, inputs, *, train, rng):
        traces.append(inputs.shape)
        assert rng is None
        return mlp(params, model_state, inputs, train=train, rng=rng)

    result = make_evaluate(model, chunk_size=chunk_size)(params, {}, source)
    inputs, labels = source.take(jnp.arange(count))
    logits, labels = numpy_mlp(params, inputs), np.asarray(labels)
    np.testing.assert_allclose(result["loss"], numpy_cross_entropy(logits, labels).mean(), rtol=1e-5)
    assert result["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert traces == [(chunk_size, 4)], "one program for all chunks"
    assert type(result["loss"]) is type(result["accuracy"]) is float


def test_evaluation_takes_another_loss():
    def zero_one(logits, labels):
        return (jnp.argmax(logits, axis=1) != labels).astype(jnp.float32) * 7

    source = make_source(11)
    result = make_evaluate(mlp, zero_one, metrics={"accuracy": accuracy}, chunk_size=4)(
        init_mlp(4, 4, 5, 3), {}, source
    )
    assert 0 < result["accuracy"] < 1
    np.testing.assert_allclose(result["loss"], 7 * (1 - result["accuracy"]), rtol=1e-6)


def test_evaluation_refuses_an_empty_source_and_a_bad_chunk():
    class Empty:
        def __len__(self):
            return 0

        def take(self, indices):
            raise AssertionError("nothing is taken")

    with pytest.raises(ValueError, match=r"source holds 0 examples.*; pass data"):
        make_evaluate(mlp)({}, {}, Empty())
    with pytest.raises(ValueError, match=r"chunk_size is 0 but must be.*; pass a positive"):
        make_evaluate(mlp, chunk_size=0)


def batches_of(selection, key, count):
    state = selection.init(key, None, None)
    batches = []
    for _ in range(count):
        state, event = selection.refresh(state, None, None)
        assert event is None
        state, batch = selection.next_batch(state)
        batches.append(batch)
    assert state.step == count
    return batches


@pytest.mark.parametrize("name", ["random", "stratified"])
def test_random_methods_give_every_example_once_per_pass_with_weight_one(name):
    source = make_source()  # 8 examples in each of 3 classes: 2 of each in a stratified batch
    selection = SELECTIONS[name](source)
    batches = batches_of(selection, jax.random.key(5), 8)
    rows = [batch.indices.tolist() for batch in batches]
    for one in (rows[:4], rows[4:]):
        assert Counter(row for batch in one for row in batch) == Counter(range(N))
    assert rows[:4] != rows[4:]
    every = source.take(jnp.arange(N))
    for batch in batches:
        assert batch.weights.tolist() == [1.0] * BATCH
        assert batch.inputs.tolist() == every.inputs[batch.indices].tolist()
        assert batch.labels.tolist() == every.labels[batch.indices].tolist()
    spread = {tuple(np.bincount(batch.labels, minlength=3)) for batch in batches}
    assert (spread == {(2, 2, 2)}) == (name == "stratified")
    again = batches_of(selection, jax.random.key(5), 8)
    assert [batch.indices.tolist() for batch in again] == rows
    other = batches_of(selection, jax.random.key(6), 8)
    assert [batch.indices.tolist() for batch in other] != rows


def test_stratified_batches_round_the_class_shares_without_bias():
    labels = np.repeat([0, 1, 2], [1, 7, 12])
    source = ArraySource(np.zeros((20, 1), np.float32), labels)
    counts = [
        np.bincount(batch.labels, minlength=3)
        for seed in range(2)
        for batch in batches_of(stratified_batches(source, 3), jax.random.key(seed), 150)
    ]
    expected = 3 * np.bincount(labels) / 20
    part = expected % 1
    assert (np.abs(np.array(counts) - expected) < 1).all()
    bound = 5 * np.sqrt(part * (1 - part) / len(counts))
    assert (np.abs(np.mean(counts, axis=0) - expected) < bound).all()


@pytest.mark.parametrize("name", ["random", "stratified"])
def test_random_methods_train_with_one_trace(name):
    selection, traces = SELECTIONS[name](make_source()), []

    @jax.jit
    def step(total, batch):
        traces.append(batch)
        return total + jnp.sum(batch.inputs), None

    fit(selection, step, jnp.zeros(()), key=jax.random.key(0), steps=9, view=lambda s: (s, {}))
    assert len(traces) == 1


@pytest.mark.parametrize("method", [random_batches, stratified_batches])
@pytest.mark.parametrize("size", [0, 25, 2.0])
def test_random_methods_refuse_a_bad_batch_size(method, size):
    with pytest.raises(ValueError, match=rf"batch_size is {size} but .*; (pass|lower)"):
        method(make_source(), size)


def test_evaluation_names_a_label_without_a_logit():
    source = make_source(11, classes=5)
    with pytest.raises(
        ValueError, match=r"highest label is 4 but the model returns 3 logits.*; renumber"
    ):
        make_evaluate(mlp, chunk_size=4)(init_mlp(4, 4, 5, 3), {}, source)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, init_mlp(4, 4, 5, 6))
    assert np.isnan(make_evaluate(mlp)(broken, {}, source)["loss"]), "what diverged is told as such"


@pytest.mark.parametrize("axis", [None, 1])
def test_evaluation_takes_one_loss_for_each_example(axis):
    def loss_fn(logits, labels):
        losses = cross_entropy(logits, labels)
        return losses.mean() if axis is None else losses[:, None]

    with pytest.raises(ValueError, match=r"loss_fn returned losses of shape .* for 4 examples but"):
        make_evaluate(mlp, loss_fn, chunk_size=4)(init_mlp(4, 4, 5, 3), {}, make_source(11))


def test_fit_takes_keys_of_both_forms_and_no_plain_number():
    def rows(key):
        seen = []

        def step(state, batch):
            seen.append(batch.indices.tolist())
            return state, None

        selection, read = random_batches(make_source(), BATCH), lambda state: (state.params, {})
        fit(selection, step, start(), key=key, steps=2, view=read)
        return seen

    assert rows(jax.random.key(1)) == rows(jax.random.PRNGKey(1))
    with pytest.raises(ValueError, match="key is 1 but must be one PRNG key"):
        rows(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_loss_is_told_at_the_end_of_its_window_or_counts_as_not_learned(bad):
    for nonfinite in ("stop", "skip"):
        source = make_source()
        selection = dynamic_pruning(
            source, BATCH, exclusion(window=4, threshold=0.1, keep_fraction=0.0), nonfinite=nonfinite
        )
        state, seen = selection.init(jax.random.key(0), None, None), set()
        for step in range(4):
            state, _ = selection.refresh(state, None, None)
            state, batch = selection.next_batch(state)
            losses = jnp.zeros(BATCH).at[2].set(bad if step == 1 else 0.0)
            seen |= {int(batch.indices[2])} if step == 1 else set()
            state = selection.observe(state, batch, losses)
        if nonfinite == "stop":
            with pytest.raises(
                FloatingPointError, match=r"handed to observe was NaN .* before step 4 "
            ):
                selection.refresh(state, None, None)
            continue
        state, _ = selection.refresh(state, None, None)
        assert set(np.flatnonzero(state.pool.exclusion.inactive.left_at == 0).tolist()) >= seen
        for _ in range(4):  # the next window is a clean one
            state, batch = selection.next_batch(state)
            state = selection.observe(state, batch, jnp.ones(BATCH))
        assert bool(state.pool.exclusion.all_finite)
    with pytest.raises(ValueError, match=r"nonfinite is 'no' but must be .*; choose"):
        dynamic_pruning(make_source(), BATCH, exclusion(), nonfinite="no")


def test_evaluation_takes_metrics_of_any_name_and_none():
    source, params = make_source(11), init_mlp(4, 4, 5, 3)
    logits = mlp(params, {}, source.take(jnp.arange(11)).inputs, train=False, rng=None)[0]
    second = make_evaluate(mlp, metrics={"second": lambda z, y: z[:, 1]}, chunk_size=4)
    found = second(params, {}, source)
    assert list(found) == ["loss", "second"]
    np.testing.assert_allclose(found["second"], logits[:, 1].mean(), rtol=1e-5)
    squared = make_evaluate(mlp, lambda z, y: jnp.sum(z**2, axis=1), chunk_size=4)
    assert list(squared(params, {}, source)) == ["loss"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([accuracy], "metrics are .* but must be a dictionary of functions"),
        ({"loss": accuracy}, 'metrics hold a metric called "loss"'),
        ({"mean": lambda z, y: jnp.mean(z)}, r"the metric 'mean' returned shape \(\) for 4 examples"),
        ({"each": lambda z, y: z}, r"the metric 'each' returned shape \(4, 3\) for 4 examples"),
    ],
)
def test_metrics_that_are_none_are_refused_in_a_sentence(metrics, message):
    with pytest.raises(ValueError, match=message):
        make_evaluate(mlp, metrics=metrics, chunk_size=4)(init_mlp(4, 4, 5, 3), {}, make_source(11))


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_evaluation_adds_losses_up_in_float32(kind):
    def constant(params, state, inputs, *, train, rng):
        return jnp.full((len(inputs), 1), 200.0, kind), state

    source = ArraySource(np.zeros((500, 1), np.float32), np.zeros(500, np.float32))

    def column(z, y):
        return z[:, 0]

    found = make_evaluate(constant, column, metrics={"same": column})({}, {}, source)
    assert found == {"loss": 200.0, "same": 200.0}


def test_steps_may_be_a_number_of_numpy():
    selector = random_batches(ArraySource(np.ones((8, 1), np.float32), np.zeros(8, int)), 2)
    step = jax.jit(lambda total, batch: (total + batch.inputs.sum(), None))
    options = {"key": jax.random.key(0), "view": lambda total: (total, {}), "scan": 4}
    assert float(fit(selector, step, jnp.zeros(()), steps=np.int64(6), **options)) == 12.0
