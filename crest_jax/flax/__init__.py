"""Flax models as `crest_jax.types.ApplyFn`; no other folder of the library imports flax.

`from_linen` and `from_nnx` turn a model into a pure function, `linen_features` and `nnx_features` give
what its last layer reads, and `WeightedBatchNorm` (Linen) and `NNXWeightedBatchNorm` are BatchNorm for
weighted mini-batches.

No adapter is needed for a model that is already a pure function: anything that can be called as
``apply_fn(params, model_state, inputs, *, train, rng) -> (logits, model_state)`` will do.
"""

from crest_jax.flax.linen import from_linen
from crest_jax.flax.linen_last_layer import linen_features
from crest_jax.flax.nnx import NNXApply, from_nnx, nnx_features
from crest_jax.flax.norms import NNXWeightedBatchNorm, WeightedBatchNorm

__all__ = [
    "NNXApply",
    "NNXWeightedBatchNorm",
    "WeightedBatchNorm",
    "from_linen",
    "from_nnx",
    "linen_features",
    "nnx_features",
]
