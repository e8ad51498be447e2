"""GLISTER: the examples whose gradients lower the loss on held-out rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.baselines.gradient_matching import combine, inner, on_device
from crest_jax.baselines.subset import Subset, subset_batches
from crest_jax.data.arrays import count_of
from crest_jax.data.classes import classes_in
from crest_jax.data.quotas import quotas_for
from crest_jax.data.sampler import next_subset, open_stream
from crest_jax.data.strata import make_strata
from crest_jax.gradients.chunked import embed_rows
from crest_jax.gradients.embeddings import (
    checked_embedding,
    last_layer_gradients,
    logit_residuals,
)
from crest_jax.gradients.losses import cross_entropy, label_span
from crest_jax.types import (
    Array,
    BatchSelector,
    Factored,
    FeaturesFn,
    LossFn,
    ModelState,
    Params,
    PhaseFn,
    Source,
    Work,
    untimed,
)

GLISTER_ROUNDS = 15  # as in the paper's experiments
HELD_OUT = 10  # GLISTER judges by one row in so many


@partial(jax.jit, static_argnames="rounds")
def lower_validation_loss(
    gradients: Factored,
    classes: Array,
    quotas: Array,
    features: Array,
    logits: Array,
    labels: Array,
    rate: Array,
    *,
    rounds: int,
) -> Array:
    """Choose the examples whose gradients lower the validation loss, by a first-order greedy choice.

    GLISTER (Killamsetty et al., AAAI 2021, Algorithm 2 and Section 3.3, last-layer approximation): in
    each of ``rounds`` rounds the examples of each class are taken whose gradients agree best with the
    validation gradient, which is then taken anew after a step of size ``rate`` along the mean gradient
    of all that are chosen. The paper has no quotas; without them the first rounds take one class only.

    Args:
      gradients: last-layer gradients of the pool: left [n, c], right [n, d].
      classes: [n], int32.
      quotas: [c], int32, examples to choose of each class, at most the class's size.
      features: [v, d], what the last layer reads for the validation rows, with a last column of ones.
      logits: [v, c], their logits.
      labels: [v], int32.
      rate: [], step size.
      rounds: static.

    Returns:
      [n], bool, the examples chosen; equal agreement goes to the lowest row.

    Example:
      >>> pool = Factored(jnp.array([[0.5, -0.5], [-0.5, 0.5]]), jnp.ones((2, 1)))
      >>> lower_validation_loss(pool, jnp.zeros(2, int), jnp.array([1, 0]), jnp.ones((1, 1)),
      ...                       jnp.zeros((1, 2)), jnp.array([1]), jnp.float32(0.1), rounds=1).tolist()
      [True, False]
    """
    counts = jnp.bincount(classes, length=quotas.shape[0])
    starts = jnp.cumsum(counts) - counts
    places = jnp.arange(classes.shape[0])

    def one(index: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, total = state
        number = jnp.sum(chosen, dtype=jnp.int32)
        step = rate * total / jnp.maximum(number, 1).astype(jnp.float32)
        moved = logits - jnp.dot(features, step.T, precision="highest")
        validation = jnp.dot(logit_residuals(moved, labels).T, features, precision="highest")
        gains = jnp.where(chosen, -jnp.inf, inner(gradients, validation / labels.shape[0]))
        wanted = quotas * (index + 1) // rounds - quotas * index // rounds
        order = jnp.lexsort((-gains, classes))
        own = classes[order]
        taken = jnp.zeros_like(chosen).at[order].set(places - starts[own] < wanted[own])
        return chosen | taken, total + combine(gradients, taken.astype(jnp.float32))

    total = jnp.zeros((logits.shape[1], features.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, rounds, one, (jnp.zeros(classes.shape[0], bool), total))[0]


def glister(
    features_fn: FeaturesFn,
    source: Source,
    batch_size: int,
    size: int,
    *,
    every: int,
    rate: float,
    loss_fn: LossFn = cross_entropy,
    phase: PhaseFn = untimed,
) -> BatchSelector:
    """Train on the examples whose gradients lower the loss on held-out rows.

    GLISTER-Online (Killamsetty et al., AAAI 2021) with last-layer gradients and class quotas: see
    ``lower_validation_loss``. The held-out rows are one in ten of each class, drawn at every choice out
    of the same data, so that no method sees more labels than another; they are not chosen
    themselves.

    Args:
      features_fn: what the last layer reads, and the logits, in evaluation mode.
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples in the subset, at most nine tenths of the data.
      every: steps after which it is chosen anew.
      rate: size of the step that the choice looks ahead: the learning rate.
      loss_fn: per-example losses; the validation gradient is that of the cross-entropy.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``; also when ``size`` leaves no row to hold out or ``rate`` is
        not above 0 and, from ``refresh``, when a label has no logit.

    Example:
      >>> from crest_jax.data.sources import ArraySource
      >>> source = ArraySource(np.eye(20, dtype=np.float32), np.arange(20) % 2)
      >>> features = lambda params, state, inputs: (inputs, inputs @ params)
      >>> selection = glister(features, source, 2, 4, every=10, rate=0.1)
      >>> state = selection.init(jax.random.key(0), jnp.zeros((20, 2)), {})
      >>> len(selection.refresh(state, jnp.zeros((20, 2)), {})[0].strata.members)
      4
    """
    _checks.in_range("rate", rate, 0.0, 1e6, open_low=True)
    count = _checks.rows_in(source)
    held = max(1, count // HELD_OUT)
    _checks.require(
        size <= count - held,
        f"size is {size} but GLISTER holds out {held} of {count} examples to judge by; lower size to "
        f"{count - held}.",
    )
    # The validation gradient is that of the cross-entropy, whatever the loss.
    embed = checked_embedding(last_layer_gradients(features_fn, loss_fn), cross_entropy, source)
    read = jax.jit(lambda p, s, e: (features_fn(p, s, e.inputs), jnp.zeros(count_of(e))))
    labels = getattr(source, "labels", None)
    _checks.require(
        label_span(labels) is not None,
        "the labels are not class numbers [n] but GLISTER judges by the cross-entropy of classes; pass "
        "integer labels, or choose another method.",
    )
    groups = classes_in(source)
    strata = make_strata(groups.codes, groups.number)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        judges = np.asarray(next_subset(open_stream(key, groups.number), strata, held)[1])
        pool = np.setdiff1d(np.arange(count), judges, assume_unique=True)
        gradients = on_device(embed_rows(embed, params, model_state, source, pool)[0])
        (features, logits), _ = embed_rows(read, params, model_state, source, judges)
        features = np.concatenate([features, np.ones((held, 1), np.float32)], axis=1)
        own, theirs = groups.codes[pool], np.asarray(labels)[judges]
        counts = np.bincount(own, minlength=groups.number)
        quotas = quotas_for(counts[None], size, "proportional")[0]
        chosen = lower_validation_loss(
            gradients, jnp.asarray(own), jnp.asarray(quotas, jnp.int32), jnp.asarray(features),
            jnp.asarray(logits), jnp.asarray(theirs), jnp.float32(rate), rounds=GLISTER_ROUNDS,
        )  # fmt: skip
        return Subset(pool[np.asarray(chosen)], np.ones(size))

    work = Work(selection_forward=count)
    return subset_batches(source, batch_size, size, choose, every=every, work=work, phase=phase)
