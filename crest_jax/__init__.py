"""CREST: coresets for data-efficient training of deep networks, in JAX."""

from crest_jax.adapters import WeightedBatchNorm, from_linen, from_nnx, linen_features
from crest_jax.config import CrestConfig
from crest_jax.crest import crest
from crest_jax.curvature import (
    draw_probes,
    gradient_and_diagonal,
    hessian_vector_product,
    hutchinson_diagonal,
)
from crest_jax.data import ArraySource
from crest_jax.devices import place
from crest_jax.embeddings import (
    Factored,
    embed_rows,
    last_layer_gradients,
    logit_gradients,
    sketched_gradients,
)
from crest_jax.host import HostSource, read_records
from crest_jax.loop import Evaluation, fit, make_evaluate
from crest_jax.losses import cross_entropy, weighted_mean
from crest_jax.pilot import Pilot, pilot
from crest_jax.planning import Plan
from crest_jax.region import Region, predict, relative_error
from crest_jax.rivals import (
    Forgetting,
    craig,
    el2n_scores,
    fixed_subset,
    forgetting_scores,
    glister,
    gradmatch,
    hardest_batches,
    init_forgetting,
    observe_predictions,
    pruned,
)
from crest_jax.sampling import random_batches, stratified_batches, unlearned_batches
from crest_jax.selection import plan_coreset, select_coreset
from crest_jax.sharded import select_coreset_sharded
from crest_jax.state import CrestState, Event, Work
from crest_jax.stream import select_coreset_stream
from crest_jax.subset import Subset, subset_batches
from crest_jax.types import ApplyFn, Batch, Coreset, Examples, Selection, Source

__all__ = [
    "ApplyFn",
    "ArraySource",
    "Batch",
    "Coreset",
    "CrestConfig",
    "CrestState",
    "Evaluation",
    "Event",
    "Examples",
    "Factored",
    "Forgetting",
    "HostSource",
    "Pilot",
    "Plan",
    "Region",
    "Selection",
    "Source",
    "Subset",
    "WeightedBatchNorm",
    "Work",
    "craig",
    "crest",
    "cross_entropy",
    "draw_probes",
    "el2n_scores",
    "embed_rows",
    "fit",
    "fixed_subset",
    "forgetting_scores",
    "from_linen",
    "from_nnx",
    "glister",
    "gradient_and_diagonal",
    "gradmatch",
    "hardest_batches",
    "hessian_vector_product",
    "hutchinson_diagonal",
    "init_forgetting",
    "last_layer_gradients",
    "linen_features",
    "logit_gradients",
    "make_evaluate",
    "observe_predictions",
    "pilot",
    "place",
    "plan_coreset",
    "predict",
    "pruned",
    "random_batches",
    "read_records",
    "relative_error",
    "select_coreset",
    "select_coreset_sharded",
    "select_coreset_stream",
    "sketched_gradients",
    "stratified_batches",
    "subset_batches",
    "unlearned_batches",
    "weighted_mean",
]
