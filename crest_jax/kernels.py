"""The compiled functions of CREST: none closes over data, and none compiles twice in a run."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from crest_jax.config import CrestConfig
from crest_jax.curvature import Moments, draw_probes, gradient_and_diagonal, smooth
from crest_jax.devices import whole
from crest_jax.embeddings import EmbedFn, in_chunks
from crest_jax.exclusion import Exclusion, observe, stands_for
from crest_jax.losses import per_example, weighted_mean
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
    config: CrestConfig,
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    embed_fn: EmbedFn,
    largest_share: float,
    mesh: Mesh | None,
) -> Kernels:
    """Compile-once functions; none closes over data, so that all data are arguments.

    ``largest_share`` is that of the largest class among the examples. Over a mesh each device scores
    a subset of its own.
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

    def choose(
        num_classes: int,
        params: Params,
        model_state: ModelState,
        examples: Examples,
        strata: Array,
        masses: Array | None,
        rows: Array,
        key: Array | None,
    ) -> tuple[Array, Array, Array, Array]:
        """Score a subset; return its coreset (picks, weights [m]), losses [r], if all is finite."""
        embeddings, losses = in_chunks(embed_fn, params, model_state, examples, chunk)
        finite = jnp.ones((), bool)
        for leaf in jax.tree.leaves((embeddings, losses)):
            finite &= jnp.all(jnp.isfinite(leaf))
        if config.nonfinite == "skip":  # what is chosen until this is noticed must be a coreset
            embeddings = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), embeddings)
        coreset = medoids(
            embeddings,
            strata,
            size=config.batch_size,
            num_classes=num_classes,
            side=side,
            masses=masses,
            # Another draw of classes for every subset, on whichever device it is scored.
            key=None if key is None else jax.random.fold_in(key, jnp.sum(rows.astype(jnp.uint32))),
        )
        weights = coreset.weights if config.weighted else jnp.ones_like(coreset.weights)
        return coreset.indices, weights, losses, finite[None]

    @partial(jax.jit, static_argnames="num_classes")
    def score_and_select(
        params: Params,
        model_state: ModelState,
        examples: Examples,
        rows: Array,
        classes: Array,
        held: tuple[Array, Array],
        slots: Array,
        exclusion: Exclusion,
        finite: Array,
        key: Array | None,
        num_classes: int,
    ) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
        """Score subsets, rows [g, r], one on each device, and put their coresets at ``slots`` [g].

        ``key`` is for mini-batches smaller than the number of classes.
        """
        strata = classes[rows].astype(jnp.int32)
        masses = stands_for(exclusion.rest, rows, keep) if keep > 0 else None
        chosen = partial(choose, num_classes)
        if mesh is None:
            own_masses = None if masses is None else masses[0]
            found = chosen(params, model_state, examples, strata[0], own_masses, rows[0], key)
        else:
            all_strata, all_masses, all_rows = jax.tree.map(jnp.ravel, (strata, masses, rows))
            apart, shared = PartitionSpec(mesh.axis_names), PartitionSpec()
            spread = jax.shard_map(
                chosen,
                mesh=mesh,
                in_specs=(shared, shared, apart, apart, apart, apart, shared),
                out_specs=apart,
                check_vma=False,
            )
            found = spread(params, model_state, examples, all_strata, all_masses, all_rows, key)
            found = jax.lax.with_sharding_constraint(found, whole(mesh))
        picks, weights, losses, all_finite = found
        picks, weights = (x.reshape(rows.shape[0], -1) for x in (picks, weights))
        picked = jnp.take_along_axis(rows, picks, axis=1)
        held = (
            held[0].at[slots].set(picked, mode="drop"),
            held[1].at[slots].set(weights, mode="drop"),
        )
        noted = (exclusion.log, exclusion.logged)
        if config.exclude_below > 0:
            # What only fills the last turn of the devices was seen before; it comes last.
            number = jnp.sum(slots < held[0].shape[0], dtype=jnp.int32) * rows.shape[1]
            noted = observe(*noted, rows.ravel(), losses, config.exclude_below, number)
        return held, noted, finite & jnp.all(all_finite)

    @jax.jit
    def probe_loss(
        params: Params, model_state: ModelState, examples: Examples, weights: Array
    ) -> Array:
        logits, _ = apply_fn(params, model_state, examples.inputs, train=False, rng=None)
        return weighted_mean(per_example(loss_fn, logits, examples.labels), weights)

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
            return weighted_mean(per_example(loss_fn, logits, examples.labels), weights)

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
    drawn = jax.random.uniform(key, (p * m,), jnp.float32)
    place = jnp.where(jnp.arange(p * m) < held * m, drawn, jnp.float32(2))
    order = jnp.argsort(place)
    return rows.ravel()[order].reshape(p, m), weights.ravel()[order].reshape(p, m)


new_probes = jax.jit(draw_probes, static_argnames="num_probes")
