"""What one example's gradient looks like, and how the loss bends."""

from crest_jax.gradients.chunked import embed_rows
from crest_jax.gradients.curvature import (
    draw_probes,
    gradient_and_diagonal,
    hessian_vector_product,
    hutchinson_diagonal,
)
from crest_jax.gradients.embeddings import (
    last_layer_gradients,
    logit_gradients,
    sketched_gradients,
)
from crest_jax.gradients.losses import cross_entropy, weighted_mean

__all__ = [
    "cross_entropy",
    "draw_probes",
    "embed_rows",
    "gradient_and_diagonal",
    "hessian_vector_product",
    "hutchinson_diagonal",
    "last_layer_gradients",
    "logit_gradients",
    "sketched_gradients",
    "weighted_mean",
]
