"""The other ways to choose mini-batches, behind the same four functions."""

from crest_jax.baselines.gradient_matching import gradmatch
from crest_jax.baselines.medoid_subset import craig
from crest_jax.baselines.online import top_loss_batches
from crest_jax.baselines.pruning import dynamic_pruning
from crest_jax.baselines.random import random_batches, stratified_batches
from crest_jax.baselines.scores import (
    Forgetting,
    el2n_scores,
    forgetting_scores,
    init_forgetting,
    observe_predictions,
    score_pruning,
)
from crest_jax.baselines.subset import Subset, fixed_subset, subset_batches
from crest_jax.baselines.validation_gain import glister

__all__ = [
    "Forgetting",
    "Subset",
    "craig",
    "dynamic_pruning",
    "el2n_scores",
    "fixed_subset",
    "forgetting_scores",
    "glister",
    "gradmatch",
    "init_forgetting",
    "observe_predictions",
    "random_batches",
    "score_pruning",
    "stratified_batches",
    "subset_batches",
    "top_loss_batches",
]
