"""The compiled functions of CREST: none closes over data, and none compiles twice in a run."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from crest_jax.config import CrestConfig
from crest_jax.curvature import Moments, draw_probes, gradient_and_diagonal, smooth
from crest_jax.embeddings import EmbedFn, in_chunks
from crest_jax.exclusion import Exclusion, observe, stands_for
from crest_jax.losses import weighted_mean
from crest_jax.medoids import class_side, medoids
from crest_jax.region import relative_error
from crest_jax.types import ApplyFn, Array, Examples, LossFn, ModelState, Params

CPU_CHUNK = 128


class Kernels(NamedTuple):
    """The compiled functions of one CREST instance."""

    score_and_select: Any
    probe_loss: Any
    error: Any
    curvature: Any


def make_kernels(
    config: CrestConfig, apply_fn: ApplyFn, loss_fn: LossFn, embed_fn: EmbedFn, largest_share: float
) -> Kernels:
    """Compile-once functions; none closes over data, so that all data are arguments.

    ``largest_share`` is that of the largest class among the examples.
    """
    beta2 = config.beta2
    if beta2 is None:
        beta2 = 0.999 if config.smoothing == "paper" else 0.9
    on_cpu = jax.default_backend() == "cpu"
    chunk = config.scoring_chunk
    if chunk is None:
        chunk = CPU_CHUNK if on_cpu else config.subset_size
    # On an H100, with its many small kernels, classes apart take three times as long as all pairs.
    side = class_side(largest_share, config.subset_size) if on_cpu else None
    keep = config.exclude_keep if config.exclude_below > 0 else 0.0

    @partial(jax.jit, static_argnames="num_classes")
    def score_and_select(
        params: Params,
        model_state: ModelState,
        examples: Examples,
        rows: Array,
        classes: Array,
        held: tuple[Array, Array],
        index: Array,
        exclusion: Exclusion,
        finite: Array,
        num_classes: int,
    ) -> tuple[tuple[Array, Array], Exclusion, Array]:
        """Score a subset and put its coreset in place ``index`` of those held, rows and weights."""
        embeddings, losses = in_chunks(embed_fn, params, model_state, examples, chunk)
        strata = classes[rows]
        masses = stands_for(exclusion, rows, keep) if keep > 0 else None
        coreset = medoids(
            embeddings,
            strata,
            size=config.batch_size,
            num_classes=num_classes,
            side=side,
            masses=masses,
        )
        picks, weights = coreset.indices, coreset.weights
        weights = weights if config.weighted else jnp.ones_like(weights)
        for leaf in jax.tree.leaves((embeddings, losses)):
            finite &= jnp.all(jnp.isfinite(leaf))
        held = held[0].at[index].set(rows[picks]), held[1].at[index].set(weights)
        return held, observe(exclusion, rows, losses), finite

    @jax.jit
    def probe_loss(
        params: Params, model_state: ModelState, examples: Examples, weights: Array
    ) -> Array:
        logits, _ = apply_fn(params, model_state, examples.inputs, train=False, rng=None)
        return weighted_mean(loss_fn(logits, examples.labels), weights)

    @jax.jit
    def curvature(
        probes: Params,
        params: Params,
        model_state: ModelState,
        examples: Examples,
        weights: Array,
        moments: Moments,
    ) -> tuple[Moments, Params, Params, Array]:
        def loss(params: Params) -> Array:
            logits, _ = apply_fn(params, model_state, examples.inputs, train=False, rng=None)
            return weighted_mean(loss_fn(logits, examples.labels), weights)

        pair = gradient_and_diagonal(probes, loss, params)
        moments, gradient, diagonal = smooth(
            moments, *pair, smoothing=config.smoothing, beta1=config.beta1, beta2=beta2
        )
        return moments, gradient, diagonal, optax.tree.norm(diagonal)

    return Kernels(score_and_select, probe_loss, jax.jit(relative_error), curvature)


@jax.jit
def shuffle_held(key: Array, rows: Array, weights: Array, held: Array) -> tuple[Array, Array]:
    """Shuffle the entries of the first ``held`` coresets of those in rows and weights [p, m]."""
    p, m = rows.shape
    place = jnp.where(jnp.arange(p * m) < held * m, jax.random.uniform(key, (p * m,)), 2.0)
    order = jnp.argsort(place)
    return rows.ravel()[order].reshape(p, m), weights.ravel()[order].reshape(p, m)


@jax.jit
def nth_coreset(rows: Array, weights: Array, index: Array) -> tuple[Array, Array]:
    """Return rows and weights [m] of one of the coresets held [p, m]."""
    return rows[index], weights[index]


new_probes = jax.jit(draw_probes, static_argnames="num_probes")
