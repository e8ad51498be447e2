"""CRAIG: medoids of the gradients of all examples."""

import jax
import numpy as np

from crest_jax.baselines.subset import Subset, subset_batches
from crest_jax.coresets.select import select_coreset
from crest_jax.data.classes import classes_in
from crest_jax.gradients.chunked import embed_rows
from crest_jax.gradients.embeddings import checked_embedding, logit_gradients
from crest_jax.gradients.losses import cross_entropy
from crest_jax.types import (
    ApplyFn,
    Array,
    BatchSelector,
    EmbedFn,
    LossFn,
    ModelState,
    Params,
    PhaseFn,
    Source,
    Work,
    untimed,
)


def craig(
    apply_fn: ApplyFn,
    source: Source,
    batch_size: int,
    size: int,
    *,
    every: int,
    loss_fn: LossFn = cross_entropy,
    embed_fn: EmbedFn | None = None,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Train on medoids of all examples' gradients, weighted by the examples that each stands for.

    Facility location on gradient embeddings of the whole data, class by class (Mirzasoleiman, Bilmes
    and Leskovec, ICML 2020, Algorithm 1), chosen anew every ``every`` steps.

    Args:
      apply_fn: the model; called in evaluation mode.
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples in the coreset.
      every: steps after which it is chosen anew.
      loss_fn: per-example losses.
      embed_fn: gradient embeddings; None takes the gradient with respect to the logits, as the paper.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches`` and ``select_coreset``; from ``refresh``, when a label has no
        logit.

    Example:
      >>> import jax.numpy as jnp
      >>> from crest_jax.data.sources import ArraySource
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> source = ArraySource(np.eye(6, dtype=np.float32), np.arange(6) % 2)
      >>> selection = craig(linear, source, 2, 4, every=10)
      >>> state = selection.init(jax.random.key(0), jnp.zeros((6, 2)), {})
      >>> float(selection.refresh(state, jnp.zeros((6, 2)), {})[0].weights[jnp.array([0, 1])].sum())
      4.0
    """
    if embed_fn is None:
        embed = checked_embedding(logit_gradients(apply_fn, loss_fn), loss_fn, source)
    else:
        embed = jax.jit(embed_fn)
    groups, rows = classes_in(source), np.arange(len(source))

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        embeddings, _ = embed_rows(embed, params, model_state, source, rows)
        coreset = select_coreset(
            embeddings, size, labels=groups.codes, num_classes=groups.number, key=key
        )
        return Subset(coreset.indices, coreset.weights)

    work = Work(selection_forward=len(source))
    return subset_batches(source, batch_size, size, choose, every=every, work=work, phase=phase)
