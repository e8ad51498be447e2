"""The rivals against NumPy and SciPy oracles in float64."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    init_mlp,
    mlp,
    mlp_features,
    numpy_coverage,
    numpy_cross_entropy,
    numpy_distances,
    numpy_greedy,
    numpy_mlp,
    numpy_softmax,
)  # fmt: skip
from scipy.optimize import nnls

import crest_jax as cj
from crest_jax import ArraySource, Factored, baselines
from crest_jax.baselines.gradient_matching import match_by_class, non_negative_weights
from crest_jax.baselines.validation_gain import lower_validation_loss

N, CLASSES = 45, 3
PARAMS = init_mlp(1, 4, 5, CLASSES)


def make_source(n=N):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % CLASSES)
    return ArraySource(np.float32(rng.normal(size=(n, 4)) + labels[:, None]), labels)


def first_choice(selection, key=0):
    state = selection.init(jax.random.key(key), PARAMS, {})
    return selection.refresh(state, PARAMS, {})


def chosen_rows(selection, key=0):
    return sorted(first_choice(selection, key)[0].strata.members.tolist())


def residuals(source):
    logits = numpy_mlp(PARAMS, source.take(jnp.arange(len(source))).inputs)
    return numpy_softmax(logits) - np.eye(CLASSES)[source.labels]


def last_layer(source):
    """Explicit last-layer gradients [n, c (d + 1)] in float64."""
    inputs = np.asarray(source.take(jnp.arange(len(source))).inputs, np.float64)
    features = np.tanh(inputs @ np.asarray(PARAMS[0][0], np.float64) + np.asarray(PARAMS[0][1]))
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    return (residuals(source)[:, :, None] * features[:, None, :]).reshape(len(source), -1), features


@pytest.mark.parametrize("method", ["craig", "gradmatch", "gradmatch_batch", "glister"])
def test_a_network_that_diverged_is_told_apart_from_a_bad_choice(method):
    source = make_source()
    selection = {
        "craig": lambda: baselines.craig(mlp, source, 3, 9, every=4),
        "gradmatch": lambda: baselines.gradmatch(mlp_features, source, 3, 9, every=4),
        "gradmatch_batch": lambda: baselines.gradmatch(
            mlp_features, source, 3, 9, per_batch=True, every=4
        ),
        "glister": lambda: baselines.glister(mlp_features, source, 3, 9, rate=0.1, every=4),
    }[method]()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    state = selection.init(jax.random.key(0), broken, {})
    with pytest.raises(FloatingPointError, match=r"NaN or infinite .*learning rate"):
        selection.refresh(state, broken, {})


def numpy_matching(gradients, size, ridge):
    """Orthogonal matching pursuit of the sum, weights by SciPy's active set."""
    target = gradients.sum(axis=0)
    damping = ridge * (gradients**2).sum(axis=1).mean()
    picks, weights = [], np.zeros(0)
    for _ in range(size):
        left = target - weights @ gradients[picks]
        scores = gradients @ left
        scores[picks] = -np.inf
        picks.append(int(scores.argmax()))
        columns = np.concatenate([gradients[picks].T, np.sqrt(damping) * np.eye(len(picks))])
        weights = nnls(columns, np.concatenate([target, np.zeros(len(picks))]))[0]
    return picks, weights


def test_non_negative_weights_match_scipy():
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = rng.normal(size=(12, 6)), rng.normal(size=12)
        found = non_negative_weights(jnp.asarray(a.T @ a), jnp.asarray(a.T @ b), jnp.zeros(6), 2_000)
        np.testing.assert_allclose(found, nnls(a, b)[0], atol=2e-4)
        assert (np.asarray(found) == 0).any(), "the bound must matter"


@pytest.mark.parametrize("factored", [False, True])
def test_matching_pursuit_picks_and_weights_match_numpy_in_every_class(factored):
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=(40, 3)) + 0.5, rng.normal(size=(40, 6)) + 0.5
    outer = (left[:, :, None] * right[:, None, :]).reshape(40, -1)
    labels = rng.integers(0, 3, 40)
    counts, quotas = np.bincount(labels), np.array([4, 7, 5])
    embeddings = Factored(jnp.asarray(left), jnp.asarray(right)) if factored else jnp.asarray(outer)
    found = match_by_class(
        embeddings, jnp.asarray(np.argsort(labels, kind="stable")), jnp.asarray(counts),
        jnp.asarray(quotas), jnp.float32(0.05), rounds=7, block=int(counts.max()),
    )  # fmt: skip
    for label, quota in enumerate(quotas):
        rows = np.flatnonzero(labels == label)
        picks, weights = numpy_matching(outer[rows], quota, 0.05)
        assert found.indices[label, :quota].tolist() == rows[picks].tolist()
        np.testing.assert_allclose(found.weights[label, :quota], weights, rtol=2e-3, atol=2e-3)
        assert found.weights[label, quota:].tolist() == [0.0] * (7 - quota)
        total = outer[rows].sum(axis=0)
        gap = np.linalg.norm(total - weights @ outer[rows[picks]]) / np.linalg.norm(total)
        np.testing.assert_allclose(found.residuals[label], gap, atol=1e-3)
        assert gap < 0.5


def test_gradmatch_matches_the_gradient_of_each_class():
    source = make_source()
    selection = baselines.gradmatch(mlp_features, source, 3, 9, every=5, ridge=0.05)
    weights = np.asarray(first_choice(selection)[0].weights)
    gradients, _ = last_layer(source)
    for label in range(CLASSES):
        rows = np.flatnonzero(source.labels == label)
        picks, expected = numpy_matching(gradients[rows], 3, 0.05)
        kept = expected > 1e-3 * expected.mean()
        np.testing.assert_allclose(weights[rows[picks]][kept], expected[kept], rtol=5e-3)
        assert (weights[rows[picks]][~kept] == 1).all()
        others = np.setdiff1d(rows, rows[picks])
        assert (weights[others] == 0).all()


def test_gradmatch_by_batches_gives_one_weight_to_each_batch():
    source = make_source()
    state, _ = first_choice(baselines.gradmatch(mlp_features, source, 5, 12, every=5, per_batch=True))
    weights = np.asarray(state.weights)
    used = weights[np.asarray(state.strata.members)]
    assert len(used) == 12
    values, counts = np.unique(used.round(5), return_counts=True)
    assert len(values) <= 3
    assert counts.max() >= 5
    gradients, _ = last_layer(source)
    total = gradients.sum(axis=0)
    gap = np.linalg.norm(total - weights @ gradients) / np.linalg.norm(total)
    rng = np.random.default_rng(0)
    random = []
    for _ in range(200):
        rows = rng.permutation(N)[:12]
        random.append(np.linalg.norm(total - N / 12 * gradients[rows].sum(axis=0)))
    assert gap < np.mean(random) / np.linalg.norm(total)


def test_craig_takes_the_medoids_of_each_class():
    source = make_source()
    state, _ = first_choice(baselines.craig(mlp, source, 3, 10, every=5))
    similarities = -numpy_distances(residuals(source))
    similarities -= similarities.min()
    quotas = [4, 3, 3]
    picks = numpy_greedy(similarities, source.labels, quotas)
    assert sorted(picks) == sorted(state.strata.members.tolist())
    expected = numpy_coverage(similarities, source.labels, picks)
    assert np.asarray(state.weights)[picks].tolist() == expected.tolist()


def test_glister_follows_the_validation_gradient_within_each_class():
    rng = np.random.default_rng(3)
    left, right, classes = rng.normal(size=(30, 3)), rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    features, logits, labels = rng.normal(size=(8, 4)), rng.normal(size=(8, 3)), rng.integers(0, 3, 8)
    quotas = np.array([4, 2, 5])
    found = lower_validation_loss(
        Factored(jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)),
        jnp.asarray(classes), jnp.asarray(quotas), jnp.asarray(features), jnp.asarray(logits),
        jnp.asarray(labels), jnp.float32(7), rounds=3,
    )  # fmt: skip
    chosen, total = [], np.zeros((3, 4))
    for t in range(3):
        moved = logits - 7 * features @ (total / max(len(chosen), 1)).T
        gradient = (numpy_softmax(moved) - np.eye(3)[labels]).T @ features / 8
        gains = np.einsum("nc,cd,nd->n", left, gradient, right)
        gains[chosen] = -np.inf
        for label, quota in enumerate(quotas):
            rows = np.flatnonzero(classes == label)
            wanted = quota * (t + 1) // 3 - quota * t // 3
            best = rows[np.argsort(-gains[rows], kind="stable")[:wanted]]
            total = total + np.einsum("nc,nd->cd", left[best], right[best])
            chosen += best.tolist()
    assert np.flatnonzero(found).tolist() == sorted(chosen)
    assert len(chosen) == 11


def test_glister_never_chooses_what_it_judges_by():
    source = make_source()
    selection = baselines.glister(
        mlp_features, source, 3, 41, every=5, rate=0.1
    )  # all but the four held out
    assert len({tuple(chosen_rows(selection, key)) for key in range(4)}) > 1
    with pytest.raises(ValueError, match="holds out 4 of 45 examples"):
        baselines.glister(mlp_features, source, 3, 42, every=5, rate=0.1)


def test_pruning_keeps_the_highest_scores_of_each_class():
    source = make_source()
    scores = np.random.default_rng(4).integers(0, 4, N).astype(float)
    kept = chosen_rows(baselines.score_pruning(source, 3, 11, scores))
    expected = []
    for label, quota in enumerate([4, 4, 3]):
        rows = [row for row in range(N) if source.labels[row] == label]
        expected += sorted(rows, key=lambda row: (-scores[row], row))[:quota]
    assert kept == sorted(expected)
    called = baselines.score_pruning(source, 3, 11, lambda key, params, model_state: scores)
    assert chosen_rows(called) == kept
    for bad in (scores[:-1], np.where(scores == 1, np.nan, scores)):
        with pytest.raises(ValueError, match="one number for each of 45 examples"):
            baselines.score_pruning(source, 3, 11, bad)


def test_error_norms_match_numpy():
    source = make_source()
    found = baselines.el2n_scores(mlp, PARAMS, {}, source)
    np.testing.assert_allclose(found, np.linalg.norm(residuals(source), axis=1), rtol=1e-5)


def test_forgetting_counts_match_a_plain_loop():
    rng = np.random.default_rng(5)
    state, histories = baselines.init_forgetting(8), [[] for _ in range(8)]
    for _ in range(30):
        rows, right = rng.permutation(7)[:4], rng.random(4) < 0.5  # row 7 is never seen
        state = baselines.observe_predictions(state, rows, right)
        for row, value in zip(rows, right, strict=True):
            histories[row].append(bool(value))
    expected = [sum(a and not b for a, b in pairwise(h)) if any(h) else np.inf for h in histories]
    assert baselines.forgetting_scores(state).tolist() == expected
    assert len(set(expected)) > 3


def test_hardest_batches_have_the_highest_losses_of_a_stratified_draw():
    source = make_source()
    losses = numpy_cross_entropy(numpy_mlp(PARAMS, source.take(jnp.arange(N)).inputs), source.labels)
    all_of_them = baselines.top_loss_batches(mlp, source, 6, N)
    state, _ = first_choice(all_of_them)
    assert sorted(state.rows.tolist()) == sorted(np.argsort(-losses)[:6].tolist())
    assert state.work.selection_forward == N
    some = baselines.top_loss_batches(mlp, source, 6, 12)
    means = [losses[np.asarray(first_choice(some, key)[0].rows)].mean() for key in range(20)]
    assert losses.mean() < np.mean(means) < losses[np.asarray(state.rows)].mean()
    with pytest.raises(ValueError, match="call refresh"):
        all_of_them.next_batch(all_of_them.init(jax.random.key(0), PARAMS, {}))


def test_a_fixed_subset_stays_and_is_stratified():
    source = make_source()
    selection = baselines.fixed_subset(source, 3, 9)
    state, event = first_choice(selection)
    assert event.reason == "start"
    assert np.bincount(source.labels[np.asarray(state.strata.members)]).tolist() == [3, 3, 3]
    seen = set()
    for _ in range(20):
        state, event = selection.refresh(state, PARAMS, {})
        assert event is None
        state, batch = selection.next_batch(state)
        seen |= set(batch.indices.tolist())
    assert seen == set(state.strata.members.tolist())


def test_subsets_are_chosen_anew_after_the_interval_and_work_is_counted():
    source = make_source()
    selection = baselines.craig(mlp, source, 3, 9, every=4)
    state = selection.init(jax.random.key(0), PARAMS, {})
    reasons = []
    for _ in range(9):
        state, event = selection.refresh(state, PARAMS, {})
        reasons.append(event and event.reason)
        state, _ = selection.next_batch(state)
    assert reasons == ["start", None, None, None, "interval", None, None, None, "interval"]
    assert state.work.selection_forward == 3 * N
    assert state.selected == 3


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        ([0, 1, 1], [1, 1, 1], "2 different rows"),
        ([0, 1, N], [1, 1, 1], "must return 3 in"),
        ([0, 1, 2], [1, 0, 1], "finite and positive"),
        ([0, 1, 2], [1, np.nan, 1], "finite and positive"),
    ],
)
def test_a_bad_choice_is_refused(rows, weights, message):
    choose = lambda key, params, model_state: baselines.Subset(np.array(rows), np.array(weights))  # noqa: E731
    with pytest.raises(ValueError, match=message):
        first_choice(baselines.subset_batches(make_source(), 2, 3, choose))


@pytest.mark.parametrize("size", [2, N + 1])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match="must lie between batch_size, 3"):
        baselines.fixed_subset(make_source(), 3, size)
    with pytest.raises(ValueError, match="must lie between batch_size, 3"):
        baselines.top_loss_batches(mlp, make_source(), 3, size)


@pytest.mark.parametrize(
    "method", ["craig", "gradmatch", "gradmatch_batch", "glister", "top_loss", "el2n"]
)
def test_a_label_without_a_logit_is_named(method):
    source = make_source()
    inputs = source.take(jnp.arange(N)).inputs
    source = ArraySource(inputs, source.labels + 1)
    make = {
        "craig": lambda: baselines.craig(mlp, source, 3, 9, every=4),
        "gradmatch": lambda: baselines.gradmatch(mlp_features, source, 3, 9, every=4),
        "gradmatch_batch": lambda: baselines.gradmatch(
            mlp_features, source, 3, 9, per_batch=True, every=4
        ),
        "glister": lambda: baselines.glister(mlp_features, source, 3, 9, rate=0.1, every=4),
        "top_loss": lambda: baselines.top_loss_batches(mlp, source, 3, 9),
    }
    with pytest.raises(ValueError, match="highest label is 3 but the model returns 3 logits"):
        baselines.el2n_scores(mlp, PARAMS, {}, source) if method == "el2n" else first_choice(
            make[method]()
        )


@pytest.mark.parametrize("method", ["craig", "gradmatch", "glister", "top_loss"])
def test_a_loss_that_is_a_mean_is_refused(method):
    def mean(logits, labels):
        return cj.cross_entropy(logits, labels).mean()

    source = make_source()
    selection = {
        "craig": lambda: baselines.craig(mlp, source, 3, 9, every=4, loss_fn=mean),
        "gradmatch": lambda: baselines.gradmatch(mlp_features, source, 3, 9, every=4, loss_fn=mean),
        "glister": lambda: baselines.glister(
            mlp_features, source, 3, 9, rate=0.1, every=4, loss_fn=mean
        ),
        "top_loss": lambda: baselines.top_loss_batches(mlp, source, 3, 9, loss_fn=mean),
    }[method]()
    with pytest.raises(ValueError, match=r"loss_fn returned losses of shape \(\) for .* average over"):
        first_choice(selection)
