"""CREST as a way of choosing mini-batches."""

from functools import partial

from crest_jax.algorithm.config import CrestConfig
from crest_jax.algorithm.crest import init, next_batch, observe, refresh
from crest_jax.algorithm.parts import make_parts
from crest_jax.algorithm.traced import traced
from crest_jax.gradients.losses import cross_entropy
from crest_jax.types import ApplyFn, BatchSelector, EmbedFn, LossFn, PhaseFn, Source, untimed


def crest(
    apply_fn: ApplyFn,
    source: Source,
    config: CrestConfig,
    *,
    loss_fn: LossFn = cross_entropy,
    embed_fn: EmbedFn | None = None,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Choose mini-batches by CREST.

    Just before each step a random subset is drawn and scored, and the coreset of ``m`` that is selected
    from it is the mini-batch, trained on whole. With ``config.region`` coresets are kept for several
    steps, as in the paper: at a region's anchor probe examples are drawn, their loss and its gradient
    are measured, and ``P`` subsets give one coreset each; after ``T1`` steps the loss of the probe
    examples is compared with the quadratic model, and the region ends when the relative error exceeds
    ``tau``. Outside the steps ``select_from`` to ``select_until`` mini-batches are those of
    ``dynamic_pruning``, and exclusion lives on the losses that the loop hands back through ``observe``.

    Args:
      apply_fn: the model. Everything here calls it in evaluation mode.
      source: the data, at least as many examples as a subset and the probe.
      config: settings: ``CrestConfig.recommended(...)`` or ``CrestConfig.paper(...)``.
      loss_fn: per-example losses.
      embed_fn: gradient embeddings; None: see ``CrestConfig.embedding``.
      phase: runs each phase (``"selection"``, ``"curvature"``, ``"check"``); a script passes a timer.

    Returns:
      A ``BatchSelector`` whose state is a ``CrestState`` and whose events are ``Event``.

    Raises:
      ValueError: when the source is smaller than a subset or the probe; from ``refresh``, when losses
        or embeddings have not one row for each example or a label has no logit; from ``observe``, when
        the losses are no floating-point numbers [m].
      FloatingPointError: from ``refresh``, on a NaN or infinite loss, embedding or curvature, also
        where ``observe`` was handed the loss; see ``CrestConfig.nonfinite``.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(8, dtype=np.float32), np.arange(8) % 2)
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> config = CrestConfig.recommended(steps=10, batch_size=4, num_examples=8)
      >>> selector = crest(linear, source, config)
      >>> params = jnp.zeros((8, 2))
      >>> state = selector.init(jax.random.key(0), params, {})
      >>> for step in range(5):
      ...     state, event = selector.refresh(state, params, {})
      ...     state, batch = selector.next_batch(state)
      >>> state.num_selected, batch.weights.sum().tolist()
      (5, 8.0)
    """
    parts = make_parts(apply_fn, source, config, loss_fn=loss_fn, embed_fn=embed_fn, phase=phase)
    return BatchSelector(
        partial(init, parts),
        partial(refresh, parts),
        partial(next_batch, parts),
        partial(observe, parts),
        traced(parts),
    )
