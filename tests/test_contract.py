"""What every way of choosing mini-batches promises, in one test for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init_mlp, mlp, mlp_features

import crest_jax as cj
from crest_jax.data import ArraySource

N, BATCH, SUBSET, CLASSES = 60, 6, 12, 3

# One line for each method: how it is made, and whether its batches are weighted.
METHODS = {
    "random": (lambda source: cj.random_batches(source, BATCH), False),
    "stratified": (lambda source: cj.stratified_batches(source, BATCH), False),
    "unlearned": (lambda source: cj.unlearned_batches(source, BATCH, window=3, below=0.5), True),
    "crest": (
        lambda source: cj.crest(
            mlp,
            source,
            cj.CrestConfig(
                batch_size=BATCH,
                subset_size=12,
                probe_size=12,
                max_coresets=3,
                max_interval=3,
                tau=0.01,
            ),
        ),
        True,
    ),
    "crest_half": (
        lambda source: cj.crest(
            mlp,
            source,
            cj.CrestConfig(
                batch_size=BATCH,
                subset_size=12,
                probe_size=12,
                max_interval=3,
                select_until=4,
                exclude_below=0.5,
                exclude_window=2,
            ),
        ),
        True,
    ),
    "fixed": (lambda source: cj.fixed_subset(source, BATCH, SUBSET), False),
    "craig": (lambda source: cj.craig(mlp, source, BATCH, SUBSET, every=4), True),
    "gradmatch": (lambda source: cj.gradmatch(mlp_features, source, BATCH, SUBSET, every=4), True),
    "gradmatch_batch": (
        lambda source: cj.gradmatch(mlp_features, source, BATCH, SUBSET, every=4, per_batch=True),
        True,
    ),
    "glister": (
        lambda source: cj.glister(mlp_features, source, BATCH, SUBSET, every=4, rate=0.1),
        False,
    ),
    "pruned": (lambda source: cj.pruned(source, BATCH, SUBSET, np.arange(N) % 7.0), False),
    "hardest": (lambda source: cj.hardest_batches(mlp, source, BATCH, 2 * BATCH), False),
}


def make_source(order=None):
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    inputs = np.float32(rng.normal(size=(N, 4)) + labels[:, None])
    order = np.arange(N) if order is None else order
    return ArraySource(inputs[order], labels[order], CLASSES)


def params_at(step):
    """Parameters that move a little at every step."""
    return [(w + 0.02 * step, b) for w, b in init_mlp(3, 4, 5, CLASSES)]


def run(selection, key, steps=9):
    """Batches of a run, and its last state and events."""
    state = selection.init(key, params_at(0), {})
    batches, events = [], []
    for step in range(steps):
        state, event = selection.refresh(state, params_at(step), {})
        events.append(event)
        state, batch = selection.next_batch(state)
        batches.append(jax.tree.map(np.asarray, batch))
        state = selection.observe(state, batch, 0.1 * (batch.rows % 10).astype(np.float32))
    return batches, state, events


@pytest.mark.parametrize("name", METHODS)
def test_batches_are_whole_and_weighted(name):
    make, weighted = METHODS[name]
    source = make_source()
    batches, state, _ = run(make(source), jax.random.key(0), steps=14)  # a pass is 10
    assert state.step == len(batches) == 14
    spread = 0.0
    for batch in batches:
        assert batch.rows.shape == batch.weights.shape == batch.labels.shape == (BATCH,)
        assert len(set(batch.rows.tolist())) == BATCH
        taken = source.take(jnp.asarray(batch.rows))
        assert batch.inputs.tolist() == taken.inputs.tolist()
        assert batch.labels.tolist() == taken.labels.tolist()
        assert batch.weights.min() > 0
        spread = max(spread, float(np.ptp(batch.weights)))
    assert (spread > 0) == weighted


@pytest.mark.parametrize("name", METHODS)
def test_the_key_decides_and_nothing_else(name):
    selection = METHODS[name][0](make_source())

    def rows(key):
        return [batch.rows.tolist() for batch in run(selection, key)[0]]

    assert rows(jax.random.key(1)) == rows(jax.random.key(1))
    assert rows(jax.random.key(1)) != rows(jax.random.key(2))


@pytest.mark.parametrize("name", METHODS)
def test_a_second_refresh_changes_nothing(name):
    selection = METHODS[name][0](make_source())
    state = selection.init(jax.random.key(0), params_at(0), {})
    state, _ = selection.refresh(state, params_at(0), {})
    again, event = selection.refresh(state, params_at(0), {})
    if name.startswith("crest"):  # a check that is due at this very step may be made again, and holds
        assert event is None or event.reason == "held"
    else:
        assert event is None
    one, two = selection.next_batch(state)[1], selection.next_batch(again)[1]
    assert one.rows.tolist() == two.rows.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_nothing_compiles_once_all_was_seen(name):
    compiled = []

    def listen(event, duration_secs, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    selection = METHODS[name][0](make_source())
    run(selection, jax.random.key(0), steps=13)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(selection, jax.random.key(1), steps=13)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
