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
    BatchSelector,
    crest,
    dynamic_pruning,
    random_batches,
    sketched_gradients,
    stratified_batches,
)
from crest_jax.baselines import (
    craig,
    el2n_scores,
    fixed_subset,
    forgetting_scores,
    glister,
    gradmatch,
    init_forgetting,
    observe_predictions,
    score_pruning,
    top_loss_batches,
)
from crest_jax.types import FeaturesFn, Work
from experiments.config import TrainConfig
from experiments.harness.timing import PhaseTimer

SKETCH = 64  # numbers that a sketched gradient has
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
) -> BatchSelector:
    """Return the method's way of choosing mini-batches; its phases go to ``timer``."""
    batch = config.batch_size
    size = max(batch, round(config.budget * len(train)))  # of the subsets that baselines train on
    subset: dict[str, Any] = {
        "every": max(1, round(steps / config.baselines.reselections)),
        "phase": timer,
    }
    match config.method:
        case "crest":
            settings = config.crest_config(steps, len(train))
            sketched = config.crest.embedding == "sketch"
            key = jax.random.key(0)
            embed_fn = sketched_gradients(key, apply_fn, SKETCH) if sketched else None
            return crest(apply_fn, train, settings, embed_fn=embed_fn, phase=timer)
        case "stratified":
            return stratified_batches(train, batch)
        case "dynamic_pruning" | "dynamic_pruning_random":
            return dynamic_pruning(
                train,
                batch,
                config.exclusion(steps, len(train)),
                stratified=config.method == "dynamic_pruning",
                nonfinite=config.run.nonfinite,
            )
        case "fixed":
            return fixed_subset(train, batch, size, phase=timer)
        case "craig":
            return craig(apply_fn, train, batch, size, **subset)
        case "gradmatch" | "gradmatch_batch":
            per_batch = config.method == "gradmatch_batch"
            return gradmatch(features_fn, train, batch, size, per_batch=per_batch, **subset)
        case "glister":
            return glister(features_fn, train, batch, size, rate=config.optim.learning_rate, **subset)
        case "top_loss":
            pool = min(len(train), config.baselines.pool_factor * batch)
            return top_loss_batches(apply_fn, train, batch, pool, phase=timer)
        case "el2n":
            return _el2n(config, apply_fn, train, size, timer, train_network)
        case "forgetting":
            return _forgetting(config, apply_fn, train, size, timer, train_network)
    return random_batches(train, batch)  # "random", "full" and "full_cut_off"


def _el2n(
    config: TrainConfig,
    apply_fn: ApplyFn,
    train: ArraySource,
    size: int,
    timer: PhaseTimer,
    train_network: TrainNetwork,
) -> BatchSelector:
    """Error norms, the mean over networks trained for the budget on random batches."""
    networks = config.baselines.scoring_networks

    def scores(key: jax.Array, params: Any, model_state: Any) -> np.ndarray:
        del params, model_state
        total = np.zeros(len(train))
        for own in jax.random.split(key, networks):
            state = train_network("random", own)
            total += el2n_scores(apply_fn, state.params, state.model_state, train)
        return total / networks

    trained = networks * dataclasses.replace(config, method="random").steps(len(train))
    trained *= config.batch_size
    work = Work(selection_forward=trained + networks * len(train), selection_backward=trained)
    return score_pruning(train, config.batch_size, size, scores, work=work, phase=timer)


def _forgetting(
    config: TrainConfig,
    apply_fn: ApplyFn,
    train: ArraySource,
    size: int,
    timer: PhaseTimer,
    train_network: TrainNetwork,
) -> BatchSelector:
    """Forgetting events over one full training."""

    def scores(key: jax.Array, params: Any, model_state: Any) -> np.ndarray:
        del params, model_state
        return forgetting_of_full_run(apply_fn, len(train), train_network, key)

    passed = config.full_steps(len(train)) * config.batch_size
    work = Work(selection_forward=2 * passed, selection_backward=passed)
    return score_pruning(train, config.batch_size, size, scores, work=work, phase=timer)


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
        seen = observe_predictions(seen, np.asarray(batch.indices), np.asarray(right(state, batch)))

    train_network("full", key, observe)
    return forgetting_scores(seen)
