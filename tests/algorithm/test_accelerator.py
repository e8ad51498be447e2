"""What runs on an accelerator, run on a CPU: the same coresets, and few waits for the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from small_settings import exclusion, settings

from crest_jax import ArraySource, crest, fit
from crest_jax.algorithm import fitting, scoring
from crest_jax.coresets.greedy import greedy
from crest_jax.coresets.mini_batch import most_rounds
from crest_jax.data import pool
from crest_jax.data.devices import read_numbers
from crest_jax.data.quotas import proportional_quotas

COUNT, FEATURES, CLASSES = 120, 6, 3
RNG = np.random.default_rng(0)
LABELS = np.arange(COUNT) % CLASSES
INPUTS = np.float32(RNG.normal(size=(COUNT, FEATURES)) + np.eye(CLASSES, FEATURES)[LABELS])


def linear(params, state, inputs, *, train, rng):
    return inputs @ params, state


@pytest.fixture
def accelerator(monkeypatch):
    """Take the ways of an accelerator."""
    monkeypatch.setattr(scoring, "share_of_memory", lambda tree: 2**31)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **others: default(*args))
    jax.clear_caches()
    yield
    jax.clear_caches()


def batches(**more):
    config = settings(
        batch_size=12, subset_size=24, probe_size=24, max_coresets=7, max_interval=4,
        interval_multiplier=9.0, coresets_per_interval=1.5,
        exclusion=exclusion(window=6, threshold=0.9, keep_fraction=0.25), **more,
    )  # fmt: skip
    source = ArraySource(INPUTS, LABELS)
    seen = []

    def step(params, batch):
        seen.append((np.asarray(batch.indices), np.asarray(batch.weights)))
        return params - 0.02 * jnp.ones_like(params), None

    start = jnp.asarray(0.1 * RNG.normal(size=(FEATURES, CLASSES)), jnp.float32)
    selection = crest(linear, source, config)
    fit(selection, step, start, key=jax.random.key(3), steps=20, view=lambda params: (params, {}))
    return [np.stack(each) for each in zip(*seen, strict=True)]


@pytest.fixture(scope="module")
def usual():
    RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state
    return batches()


def test_an_accelerator_chooses_the_same_coresets(usual, accelerator):
    RNG.bit_generator.state = np.random.default_rng(5).bit_generator.state
    rows, weights = batches()
    # Two rows that cover each other alike have equal gains, between which the last digit decides.
    assert np.mean(rows == usual[0]) > 0.95
    np.testing.assert_allclose(weights.sum(axis=1), usual[1].sum(axis=1), rtol=1e-6)


def test_subsets_of_a_region_are_scored_together(monkeypatch, accelerator):
    sizes = []
    drawn = scoring.pool.draw_many

    def counted(rules, pool, size, number):
        sizes.append(number)
        return drawn(rules, pool, size, number)

    monkeypatch.setattr(scoring.pool, "draw_many", counted)
    batches()
    assert set(sizes) <= {1, 2, 4}
    assert 4 in sizes


@pytest.mark.parametrize("seed", range(5))
def test_no_quota_exceeds_the_static_rounds(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        classes = int(rng.integers(1, 12))
        shares = rng.dirichlet(np.full(classes, rng.choice([0.3, 5.0])))
        rows = int(rng.integers(classes, 300))
        size = int(rng.integers(1, rows + 1))
        exact = shares * rows
        counts = np.diff(np.floor(np.cumsum(exact) + rng.random() * (1 - 1e-9)), prepend=0).astype(int)
        counts[-1] += rows - counts.sum()
        quotas = proportional_quotas(counts, size, np)
        assert quotas.max() <= most_rounds(shares.max(), rows, size, classes)


@pytest.mark.parametrize("more", [0, 3])
def test_static_rounds_give_the_picks_of_as_many_as_it_takes(more):
    points = jnp.asarray(RNG.normal(size=(40, 3)), jnp.float32)
    values = jnp.linalg.norm(points[:, None] - points[None], axis=-1)
    classes, quotas = jnp.arange(40) % 3, jnp.array([5, 1, 4])
    masses = jnp.asarray(RNG.uniform(0.5, 2, 40), jnp.float32)
    fixed = greedy(values, jnp.max(values), classes, quotas, 10, masses, rounds=5 + more)
    free = greedy(values, jnp.max(values), classes, quotas, 10, masses)
    assert fixed.indices.tolist() == free.indices.tolist()
    np.testing.assert_allclose(fixed.gains, free.gains, rtol=1e-6)
    assert classes[fixed.indices].tolist() == [0] * 5 + [1] + [2] * 4


def test_the_host_waits_once_a_check_and_once_more_a_region(monkeypatch):
    """Counted over a training; nothing else is read."""
    reads, other, inside = [], [], []
    value = ArrayImpl._value

    def counted(*arrays):
        inside.append(True)
        found = read_numbers(*arrays)
        inside.clear()
        reads.append(len(arrays))
        return found

    def spied(array):
        if not inside:
            other.append(array.shape)
        return value.fget(array)

    config = settings(
        batch_size=12, subset_size=24, probe_size=24, max_coresets=7, max_interval=4, tau=0.05,
        interval_multiplier=9.0, coresets_per_interval=1.5,
        exclusion=exclusion(window=10, threshold=0.9, keep_fraction=0.25),
    )  # fmt: skip
    selection = crest(linear, ArraySource(INPUTS, LABELS), config)
    slope = 0.05 * np.arange(CLASSES, dtype=np.float32)[None]
    step = jax.jit(lambda params, batch: (params - slope * batch.weights.mean(), None))
    params, events, quiet = jnp.zeros((FEATURES, CLASSES)), [], 0
    state = selection.init(jax.random.key(0), params, {})
    for module in (fitting, pool):
        monkeypatch.setattr(module, "read_numbers", counted)
    monkeypatch.setattr(ArrayImpl, "_value", property(spied))
    for _ in range(60):
        before = len(reads)
        state, event = selection.refresh(state, params, {})
        events.append(event)
        if event is None:
            assert len(reads) == before, "nothing is read between checks"
            quiet += 1
        state, batch = selection.next_batch(state)
        params, _ = step(params, batch)
        state = selection.observe(state, batch, jnp.zeros(12))
    checks = sum(event is not None and event.rho is not None for event in events)
    regions = sum(event is not None and event.began_region for event in events)
    windows = 60 // 10 - 1
    assert checks > 5
    assert regions > 2
    assert quiet > 10
    assert len(reads) <= checks + regions + windows
    assert other == []
