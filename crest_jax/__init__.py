"""CREST: coresets for data-efficient training of deep networks, in JAX.

``crest_jax.flax`` (Linen, NNX), ``crest_jax.sklearn``, ``crest_jax.baselines``,
``crest_jax.diagnostics`` and ``crest_jax.gradients`` are imported by themselves:
``from crest_jax.flax import from_linen``.
"""

from crest_jax.algorithm.config import CrestConfig, RegionConfig
from crest_jax.algorithm.selector import crest
from crest_jax.algorithm.state import Event
from crest_jax.baselines.pruning import dynamic_pruning
from crest_jax.baselines.random import random_batches, stratified_batches
from crest_jax.coresets.select import plan_coreset, select_coreset
from crest_jax.coresets.sharded import select_coreset_sharded
from crest_jax.coresets.stream import select_coreset_stream
from crest_jax.data.adapters import from_frame, from_records
from crest_jax.data.devices import place
from crest_jax.data.exclusion import ExclusionConfig
from crest_jax.data.host import HostSource
from crest_jax.data.sources import ArraySource
from crest_jax.gradients.embeddings import last_layer_gradients, logit_gradients, sketched_gradients
from crest_jax.gradients.losses import cross_entropy
from crest_jax.loop import fit, make_evaluate
from crest_jax.types import (
    ApplyFn,
    Batch,
    BatchSelector,
    Coreset,
    EmbedFn,
    Examples,
    Factored,
    LossFn,
    Source,
)

__all__ = [
    "ApplyFn",
    "ArraySource",
    "Batch",
    "BatchSelector",
    "Coreset",
    "CrestConfig",
    "EmbedFn",
    "Event",
    "Examples",
    "ExclusionConfig",
    "Factored",
    "HostSource",
    "LossFn",
    "RegionConfig",
    "Source",
    "crest",
    "cross_entropy",
    "dynamic_pruning",
    "fit",
    "from_frame",
    "from_records",
    "last_layer_gradients",
    "logit_gradients",
    "make_evaluate",
    "place",
    "plan_coreset",
    "random_batches",
    "select_coreset",
    "select_coreset_sharded",
    "select_coreset_stream",
    "sketched_gradients",
    "stratified_batches",
]
