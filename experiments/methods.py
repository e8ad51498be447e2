"""Methods by name: how a training run chooses its mini-batches."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from crest_jax import (
    ApplyFn,
    ArraySource,
    Batch,
    Selection,
    craig,
    crest,
    el2n_scores,
    fixed_subset,
    forgetting_scores,
    glister,
    gradmatch,
    hardest_batches,
    init_forgetting,
    last_layer_gradients,
    observe_predictions,
    pruned,
    random_batches,
    sketched_gradients,
    stratified_batches,
    unlearned_batches,
)
from crest_jax.embeddings import EmbedFn, FeaturesFn
from crest_jax.state import Work
from experiments.config import TrainConfig
from experiments.optim import DROPS
from experiments.timing import PhaseTimer

SKETCH = 64  # numbers that a sketched gradient has
MANY_PASSES = 10  # over the data: in more, exclusion ends where the learning rate first drops
# (method, key, on_batch) -> the trained state of another network of the same kind
TrainNetwork = Callable[..., Any]


def make_selection(
    config: TrainConfig,
    apply_fn: ApplyFn,
    features_fn: FeaturesFn,
    train: ArraySource,
    steps: int,
    timer: PhaseTimer,
    train_network: TrainNetwork,
) -> Selection:
    """Return the method's way of choosing mini-batches; its phases go to ``timer``."""
    batch = config.crest.batch_size
    size = max(batch, round(config.budget * len(train)))  # of the subsets that rivals train on
    subset: dict[str, Any] = {"every": max(1, round(steps / config.reselections)), "phase": timer}
    match config.method:
        case "crest":
            settings = config.crest
            if settings.reference_step is None:
                settings = dataclasses.replace(settings, reference_step=round(config.warmup * steps))
            if settings.select_until is None and settings.select_from == 0:
                low, high = (round(share * steps) for share in config.select_span)
                until = None if high >= steps else max(high, low + 1)
                settings = dataclasses.replace(settings, select_from=low, select_until=until)
            settings = dataclasses.replace(settings, exclude_until=exclude_until(config, steps, train))
            embed_fn = _embedding(config, apply_fn, features_fn)
            return crest(apply_fn, train, settings, embed_fn=embed_fn, phase=timer)
        case "stratified":
            return stratified_batches(train, batch)
        case "unlearned" | "random_unlearned":
            return unlearned_batches(
                train,
                batch,
                below=config.crest.exclude_below,
                window=config.crest.exclude_window,
                windows=config.crest.exclude_for,
                keep=config.crest.exclude_keep,
                until=exclude_until(config, steps, train),
                stratified=config.method == "unlearned",
                nonfinite=config.crest.nonfinite,
            )
        case "fixed":
            return fixed_subset(train, batch, size, phase=timer)
        case "craig":
            return craig(apply_fn, train, batch, size, **subset)
        case "gradmatch" | "gradmatch_batch":
            per_batch = config.method == "gradmatch_batch"
            return gradmatch(features_fn, train, batch, size, per_batch=per_batch, **subset)
        case "glister":
            return glister(features_fn, train, batch, size, rate=config.learning_rate, **subset)
        case "hardest":
            pool = min(len(train), config.pool_factor * batch)
            return hardest_batches(apply_fn, train, batch, pool, phase=timer)
        case "el2n":
            return _el2n(config, apply_fn, train, size, timer, train_network)
        case "forgetting":
            return _forgetting(config, apply_fn, train, size, timer, train_network)
    return random_batches(train, batch)  # "random", "full" and "truncated"


def exclude_until(config: TrainConfig, steps: int, train: ArraySource) -> int | None:
    """Return the step at which exclusion ends, None for the last: see ``--exclude-until``."""
    crest = config.crest
    many = crest.exclude_keep > 0 and steps * crest.batch_size > MANY_PASSES * len(train)
    return crest.exclude_until or (round(DROPS[0] * steps) if many else None)


def _embedding(config: TrainConfig, apply_fn: ApplyFn, features_fn: FeaturesFn) -> EmbedFn | None:
    match config.embedding:
        case "last_layer":
            return last_layer_gradients(features_fn)
        case "sketch":
            return sketched_gradients(jax.random.key(0), apply_fn, SKETCH)
    return None


def _el2n(
    config: TrainConfig,
    apply_fn: ApplyFn,
    train: ArraySource,
    size: int,
    timer: PhaseTimer,
    train_network: TrainNetwork,
) -> Selection:
    """Error norms, the mean over networks trained for the budget on random batches."""
    networks = config.scoring_networks

    def scores(key: jax.Array, params: Any, model_state: Any) -> np.ndarray:
        del params, model_state
        total = np.zeros(len(train))
        for own in jax.random.split(key, networks):
            state = train_network("random", own)
            total += el2n_scores(apply_fn, state.params, state.model_state, train)
        return total / networks

    trained = networks * dataclasses.replace(config, method="random").steps(len(train))
    trained *= config.crest.batch_size
    work = Work(selection_forward=trained + networks * len(train), selection_backward=trained)
    return pruned(train, config.crest.batch_size, size, scores, work=work, phase=timer)


def _forgetting(
    config: TrainConfig,
    apply_fn: ApplyFn,
    train: ArraySource,
    size: int,
    timer: PhaseTimer,
    train_network: TrainNetwork,
) -> Selection:
    """Forgetting events over one full training."""

    def scores(key: jax.Array, params: Any, model_state: Any) -> np.ndarray:
        del params, model_state
        return forgetting_of_full_run(apply_fn, len(train), train_network, key)

    passed = config.full_steps(len(train)) * config.crest.batch_size
    work = Work(selection_forward=2 * passed, selection_backward=passed)
    return pruned(train, config.crest.batch_size, size, scores, work=work, phase=timer)


def forgetting_of_full_run(
    apply_fn: ApplyFn,
    count: int,
    train_network: TrainNetwork,
    key: jax.Array,
    on_batch: Callable[[Any, Batch], None] | None = None,
) -> np.ndarray:
    """Train another network on all steps and return the forgetting scores [count].

    Args:
      apply_fn: the model; predictions are those of evaluation mode, before each step.
      count: training examples.
      train_network: trains the network.
      key: of its parameters and mini-batches.
      on_batch: called before each step with the state and the batch.
    """
    seen = init_forgetting(count)

    @jax.jit
    def right(state: Any, batch: Batch) -> jax.Array:
        logits, _ = apply_fn(state.params, state.model_state, batch.inputs, train=False, rng=None)
        return logits.argmax(axis=1) == batch.labels

    def observe(state: Any, batch: Batch) -> None:
        nonlocal seen
        if on_batch is not None:
            on_batch(state, batch)
        seen = observe_predictions(seen, np.asarray(batch.rows), np.asarray(right(state, batch)))

    train_network("full", key, observe)
    return forgetting_scores(seen)
