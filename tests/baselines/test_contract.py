"""What every way of choosing mini-batches promises, in one test for all of them."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init_mlp, mlp, mlp_features
from small_settings import exclusion, fresh_settings, settings

import crest_jax as cj
from crest_jax import ArraySource, ExclusionConfig, baselines
from crest_jax.gradients.losses import weighted_mean
from crest_jax.loop import several_steps

N, BATCH, SUBSET, CLASSES = 60, 6, 12, 3

# One line for each method: how it is made, and whether its batches are weighted.
METHODS = {
    "random": (lambda source: cj.random_batches(source, BATCH), False),
    "stratified": (lambda source: cj.stratified_batches(source, BATCH), False),
    "dynamic_pruning": (
        lambda source: baselines.dynamic_pruning(source, BATCH, exclusion(window=3, threshold=0.5)),
        True,
    ),
    "crest": (
        lambda source: cj.crest(
            mlp,
            source,
            settings(
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
            settings(
                batch_size=BATCH,
                subset_size=12,
                probe_size=12,
                max_interval=3,
                select_until=4,
                exclusion={"threshold": 0.5, "window": 2},
            ),
        ),
        True,
    ),
    "crest_fresh": (
        lambda source: cj.crest(
            mlp,
            source,
            fresh_settings(
                batch_size=BATCH,
                subset_size=12,
                select_from=2,
                select_until=9,
                exclusion={"threshold": 0.5, "window": 3},
            ),
        ),
        True,
    ),
    "crest_fresh_medoids": (
        lambda source: cj.crest(
            mlp,
            source,
            fresh_settings(batch_size=BATCH, subset_size=12, picks="medoids", select_until=7),
        ),
        True,
    ),
    "crest_unstratified": (
        lambda source: cj.crest(
            mlp,
            source,
            fresh_settings(
                batch_size=BATCH, subset_size=12, picks="medoids", stratified=False, by_class=True
            ),
        ),
        True,
    ),
    "fixed": (lambda source: baselines.fixed_subset(source, BATCH, SUBSET), False),
    "craig": (lambda source: baselines.craig(mlp, source, BATCH, SUBSET, every=4), True),
    "gradmatch": (
        lambda source: baselines.gradmatch(mlp_features, source, BATCH, SUBSET, every=4),
        True,
    ),
    "gradmatch_batch": (
        lambda source: baselines.gradmatch(
            mlp_features, source, BATCH, SUBSET, every=4, per_batch=True
        ),
        True,
    ),
    "glister": (
        lambda source: baselines.glister(mlp_features, source, BATCH, SUBSET, every=4, rate=0.1),
        False,
    ),
    "score_pruning": (
        lambda source: baselines.score_pruning(source, BATCH, SUBSET, np.arange(N) % 7.0),
        False,
    ),
    "top_loss": (lambda source: baselines.top_loss_batches(mlp, source, BATCH, 2 * BATCH), False),
}


def make_source(order=None):
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    inputs = np.float32(rng.normal(size=(N, 4)) + labels[:, None])
    order = np.arange(N) if order is None else order
    return ArraySource(inputs[order], labels[order])


def params_at(step):
    """Parameters that move a little at every step."""
    return [(w + 0.02 * step, b) for w, b in init_mlp(3, 4, 5, CLASSES)]


@functools.cache
def selection_of(name):
    """A method on the usual source, compiled once for all tests."""
    return METHODS[name][0](make_source())


def run(selection, key, steps=9):
    """Batches of a run, and its last state and events."""
    state = selection.init(key, params_at(0), {})
    batches, events = [], []
    for step in range(steps):
        state, event = selection.refresh(state, params_at(step), {})
        events.append(event)
        state, batch = selection.next_batch(state)
        batches.append(jax.tree.map(np.asarray, batch))
        state = selection.observe(state, batch, 0.1 * (batch.indices % 10).astype(np.float32))
    return batches, state, events


@pytest.mark.parametrize("name", METHODS)
def test_batches_are_whole_and_weighted(name):
    weighted, source = METHODS[name][1], make_source()
    batches, state, _ = run(selection_of(name), jax.random.key(0), steps=14)  # a pass is 10
    assert state.step == len(batches) == 14
    spread = 0.0
    for batch in batches:
        assert batch.indices.shape == batch.weights.shape == batch.labels.shape == (BATCH,)
        assert len(set(batch.indices.tolist())) == BATCH
        taken = source.take(jnp.asarray(batch.indices))
        assert batch.inputs.tolist() == taken.inputs.tolist()
        assert batch.labels.tolist() == taken.labels.tolist()
        assert batch.weights.min() > 0
        spread = max(spread, float(np.ptp(batch.weights)))
    assert (spread > 0) == weighted


@pytest.mark.parametrize("name", METHODS)
def test_the_key_decides_and_nothing_else(name):
    selection = selection_of(name)

    def rows(key):
        return [batch.indices.tolist() for batch in run(selection, key)[0]]

    assert rows(jax.random.key(1)) == rows(jax.random.key(1))
    assert rows(jax.random.key(1)) != rows(jax.random.key(2))


@pytest.mark.parametrize("name", METHODS)
def test_a_second_refresh_changes_nothing(name):
    selection = selection_of(name)
    state = selection.init(jax.random.key(0), params_at(0), {})
    state, _ = selection.refresh(state, params_at(0), {})
    again, event = selection.refresh(state, params_at(0), {})
    if name.startswith("crest"):  # a check that is due at this very step may be made again, and holds
        assert event is None or event.reason == "kept"
    else:
        assert event is None
    one, two = selection.next_batch(state)[1], selection.next_batch(again)[1]
    assert one.indices.tolist() == two.indices.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_nothing_compiles_once_all_was_seen(name):
    compiled = []

    def listen(event, duration_secs, **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    selection = selection_of(name)
    run(selection, jax.random.key(0), steps=13)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(selection, jax.random.key(1), steps=13)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


@pytest.mark.parametrize("name", METHODS)
def test_keys_of_both_forms_draw_alike_and_a_plain_number_is_none(name):
    selection = selection_of(name)
    new, old = (run(selection, key, steps=5)[0] for key in (jax.random.key(7), jax.random.PRNGKey(7)))
    assert [batch.indices.tolist() for batch in new] == [batch.indices.tolist() for batch in old]
    for key in (7, np.int64(7), jax.random.split(jax.random.key(0)), None):
        with pytest.raises(ValueError, match=r"^key is .* but must be one PRNG key; pass jax\.random"):
            selection.init(key, params_at(0), {})


def arrays_of(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]


@pytest.mark.parametrize("name", METHODS)
def test_many_steps_in_one_program_are_the_steps_one_by_one(name):
    @jax.jit
    def step(params, batch):
        def loss(params):
            losses = cj.cross_entropy(mlp_features(params, {}, batch.inputs)[1], batch.labels)
            return weighted_mean(losses, batch.weights), losses

        gradients, losses = jax.grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
        # Programs round otherwise, by which a choice between equals may fall otherwise.
        params = jax.tree.map(lambda p: jnp.round(p * 2**12) / 2**12, params)
        return params, (losses, batch.indices, batch.weights)

    def train(scan):
        seen, events = [], []
        params = cj.fit(
            selection_of(name),
            step,
            params_at(0),
            key=jax.random.key(4),
            steps=23,
            view=lambda params: (params, {}),
            losses=lambda metrics: metrics[0],
            on_event=events.append,
            on_step=lambda number, metrics: seen.append((number, *map(np.asarray, metrics))),
            scan=scan,
        )
        return params, seen, events

    (one, seen, told), (many, seen_many, told_many) = train(1), train(8)
    assert [number for number, *_ in seen_many] == list(range(23))
    for (_, losses, rows, weights), (_, losses_many, rows_many, weights_many) in zip(
        seen, seen_many, strict=True
    ):
        np.testing.assert_array_equal(rows_many, rows)
        assert_same(weights_many, weights, name)
        np.testing.assert_allclose(losses_many, losses, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
    assert len(told_many) == len(told)


@pytest.mark.parametrize("name", METHODS)
def test_several_mini_batches_are_those_that_come_one_by_one(name):
    selection, rest = selection_of(name), 14
    traced, state = selection.traced, selection.init(jax.random.key(5), params_at(0), {})
    lengths = set()
    while rest > 0:
        step = 14 - rest
        before, _ = traced.refresh(state, params_at(step), {})
        k = min(traced.quiet(before), 5, rest)
        lengths.add(k)
        assert k >= 1
        losses = np.linspace(0.1, 0.9, BATCH, dtype=np.float32)
        batches = []
        for i in range(k):
            state, event = selection.refresh(state, params_at(step + i), {})
            assert i == 0 or event is None
            state, batch = selection.next_batch(state)
            state = selection.observe(state, batch, losses)
            batches.append(batch)

        def one(carry, batch, losses=losses):
            return (params_at(carry[1] + 1), carry[1] + 1), (batch, losses)

        given = selection, one, before, (params_at(step), jnp.int32(step)), k
        together, _, (found, _) = several_steps(
            *given, view=lambda carry: (carry[0], {}), losses=lambda found: found[1]
        )
        for i, batch in enumerate(batches):
            for alone, many in zip(jax.tree.leaves(batch), jax.tree.leaves(found), strict=True):
                assert_same(many[i], alone, name)
        if getattr(state, "evenness", None) is not None:  # of gradients, up to a program's rounding
            np.testing.assert_allclose(together.evenness, state.evenness, rtol=1e-6)
            together = together._replace(evenness=state.evenness)
        for alone, many in zip(jax.tree.leaves(state), jax.tree.leaves(together), strict=True):
            same = (data_of(x) if isinstance(x, jax.Array) else x for x in (many, alone))
            assert_same(*same, name)
        rest -= k
    assert max(lengths) > 1


def assert_same(found, wanted, name):
    """Values are equal; weights that come from gradients up to the rounding of a program."""
    if name == "crest_fresh" and np.asarray(wanted).dtype == np.float32:
        np.testing.assert_allclose(found, wanted, rtol=2e-6)
    else:
        np.testing.assert_array_equal(found, wanted)


def data_of(array):
    kind = jax.dtypes.prng_key
    return jax.random.key_data(array) if jax.dtypes.issubdtype(array.dtype, kind) else array


def assert_apart(tree):
    """No array of the tree lies where another does, so that all may be donated at once."""
    places = [data_of(array).unsafe_buffer_pointer() for array in arrays_of(tree)]
    assert len(places) == len(set(places)) > 0


@jax.jit
def copied(arrays):
    return [jnp.copy(array) for array in arrays]


def donated(state):
    """The same state in other memory; the old one's is gone."""
    leaves, structure = jax.tree.flatten(state)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    moved = copied([data_of(leaves[i]) for i in places])
    for i, new in zip(places, moved, strict=True):
        if jax.dtypes.issubdtype(leaves[i].dtype, jax.dtypes.prng_key):
            new = jax.random.wrap_key_data(new)
        if not leaves[i].is_deleted():
            leaves[i].delete()
        leaves[i] = new
    return jax.tree.unflatten(structure, leaves)


def delete(arrays, but=()):
    kept = {id(array) for array in but}
    for array in arrays:
        if id(array) not in kept and not array.is_deleted():
            array.delete()


def run_and_throw_away(selection, steps, whole):
    """Rows of a run that deletes every batch after its step, and what the state no longer holds.

    With ``whole`` all of the state is donated between any two calls.
    """
    state, rows = selection.init(jax.random.key(0), params_at(0), {}), []
    for step in range(steps):
        assert_apart(state)
        state = donated(state) if whole else state
        old = arrays_of(state)
        state, _ = selection.refresh(state, params_at(step), {})
        state = donated(state) if whole else state
        old += arrays_of(state)
        state, batch = selection.next_batch(state)
        assert_apart((state, batch))
        rows.append(batch.indices.tolist())
        losses = jnp.asarray(0.1 * (np.asarray(batch.indices) % 10), jnp.float32)
        state = selection.observe(state, batch, losses)
        delete([*arrays_of(batch), losses])
        delete(old, but=arrays_of(state))
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_states_and_batches_may_be_donated(name):
    selection = selection_of(name)
    wanted = [batch.indices.tolist() for batch in run(selection, jax.random.key(0), steps=9)[0]]
    assert run_and_throw_away(selection, 9, whole=False) == wanted
    assert run_and_throw_away(selection, 9, whole=True) == wanted


@pytest.mark.parametrize("name", ["stratified", "crest_half", "fixed"])
def test_states_and_batches_of_a_source_that_reads_ahead_may_be_donated(name):
    source = make_source()
    inputs = np.asarray(source.take(jnp.arange(N)).inputs)
    selection = METHODS[name][0](cj.HostSource(inputs, source.labels))
    wanted = [
        batch.indices.tolist() for batch in run(selection_of(name), jax.random.key(0), steps=9)[0]
    ]
    assert run_and_throw_away(selection, 9, whole=False) == wanted
    assert run_and_throw_away(selection, 9, whole=True) == wanted


def by_inputs(params, model_state, examples):
    """An embedding and losses that do not read the labels."""
    logits, _ = mlp(params, model_state, examples.inputs, train=False, rng=None)
    return logits, jnp.sum(jnp.square(logits), axis=1)


def square(logits, labels):
    return jnp.sum(jnp.square(logits), axis=1) + 0.0 * labels


RELABELLED = {name: make for name, (make, _) in METHODS.items()} | {
    "crest": lambda source: cj.crest(
        mlp,
        source,
        settings(batch_size=BATCH, subset_size=12, probe_size=12, max_interval=3, tau=0.01),
        loss_fn=square,
        embed_fn=by_inputs,
    ),
    "craig": lambda source: baselines.craig(mlp, source, BATCH, SUBSET, every=4, embed_fn=by_inputs),
    "gradmatch": lambda source: baselines.gradmatch(
        mlp_features, source, BATCH, SUBSET, every=4, loss_fn=square
    ),
}


@pytest.mark.parametrize(
    "name", ["stratified", "dynamic_pruning", "crest", "fixed", "craig", "gradmatch", "score_pruning"]
)
def test_only_the_partition_counts_not_the_numbers_of_its_classes(name):
    source = make_source()
    inputs, labels = np.asarray(source.take(jnp.arange(N)).inputs), source.labels
    drawn = []
    for numbers, classes in (
        (labels, "labels"),
        (labels + 1, "labels"),
        (labels - 7, "labels"),
        (np.array([5, 10**9, 2 * 10**9])[labels], "labels"),
        (labels, np.array(["ant", "bee", "cat"])[labels]),
    ):
        selection = RELABELLED[name](ArraySource(inputs, numbers, classes=classes))
        batches, _, _ = run(selection, jax.random.key(2), steps=7)
        drawn.append([(batch.indices.tolist(), batch.weights.tolist()) for batch in batches])
        for batch in batches:
            assert batch.labels.tolist() == numbers[batch.indices].tolist(), "targets stay as they are"
    assert all(rows == drawn[0] for rows in drawn[1:])


# The first rows that each method has always drawn from this source.
FIRST = {
    "random": "acac802b5fca432a",
    "stratified": "fa15f09e772762ff",
    "dynamic_pruning": "55dac92edefb2d37",
    "fixed": "cb1e135a4e332473",
    "score_pruning": "82347c1739edf9d0",
}


@pytest.mark.parametrize("name", FIRST)
def test_draws_stay_what_they_have_been(name):
    found = hashlib.sha1()
    for batch in run(selection_of(name), jax.random.key(3), steps=14)[0]:
        found.update(batch.indices.tobytes() + batch.weights.tobytes())
    assert found.hexdigest()[:16] == FIRST[name]


@pytest.mark.parametrize("name", ["dynamic_pruning", "crest", "crest_half"])
@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (jnp.float32(0.5), r"float32 of shape \(\)"),
        (jnp.ones(BATCH - 1), r"float32 of shape \(5,\)"),
        (jnp.ones((BATCH, 1)), r"float32 of shape \(6, 1\)"),
        (jnp.ones(BATCH, int), "int32 of shape"),
        (np.ones(BATCH, bool), "bool of shape"),
        (True, "bool of shape"),
        (3, "int64 of shape"),
    ],
    ids=["scalar", "too few", "column", "integers", "booleans", "a boolean", "an integer"],
)
def test_what_is_no_loss_is_refused(name, losses, told):
    selection = selection_of(name)
    state = selection.init(jax.random.key(0), params_at(0), {})
    state, batch = selection.next_batch(selection.refresh(state, params_at(0), {})[0])
    with pytest.raises(
        ValueError, match=f"losses handed to observe are {told}.*; pass the step's losses"
    ):
        selection.observe(state, batch, losses)
    selection.observe(state, batch, [0.5] * BATCH)


def test_a_long_window_of_dynamic_pruning_remembers_the_newest_observations():
    source = ArraySource(np.zeros((256, 1), np.float32), np.zeros(256, int))
    own = ExclusionConfig.recommended(window=300_000)
    state = baselines.dynamic_pruning(source, 128, own).init(jax.random.key(0), None, None)
    assert state.pool.exclusion.observations.shape == (2**24,)
