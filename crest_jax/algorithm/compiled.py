"""The compiled functions of CREST: none closes over data, and none compiles twice in a run."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from crest_jax.algorithm.config import CrestConfig, RegionConfig
from crest_jax.algorithm.regions import Region, predict, relative_error
from crest_jax.coresets.importance import evenness, importance_sample, lengths_of
from crest_jax.coresets.mini_batch import medoids
from crest_jax.data.arrays import count_of
from crest_jax.data.chunks import chunk_length
from crest_jax.data.devices import num_devices, whole
from crest_jax.data.exclusion import (
    Exclusion,
    Noted,
    importance_weights,
    noted_in,
    observe,
    share_drawn,
)
from crest_jax.gradients.chunked import bytes_needed, in_chunks
from crest_jax.gradients.curvature import (
    DECAYS,
    Moments,
    covered,
    draw_probes,
    gradient_and_diagonal,
    hessian_vector_product,
    smooth,
    with_part,
)
from crest_jax.gradients.losses import per_example, weighted_mean
from crest_jax.types import ApplyFn, Array, EmbedFn, Examples, LossFn, ModelState, Params, PyTree

CPU_CACHE = 2**24  # bytes: what a subset takes at once on a CPU, else it is scored in chunks
CPU_CHUNK = 128  # examples of such a chunk


class Problem(NamedTuple):
    """What the compiled functions are made from; all of it is fixed in a run.

    Attributes:
      config: settings.
      apply_fn: the model.
      loss_fn: per-example losses.
      embed_fn: gradient embeddings.
      mesh: the devices; they share out the rows of one subset, and several subsets. None: one.
    """

    config: CrestConfig
    apply_fn: ApplyFn
    loss_fn: LossFn
    embed_fn: EmbedFn
    mesh: Mesh | None

    @property
    def region(self) -> RegionConfig:
        """Settings of regions, where coresets are kept."""
        assert self.config.region is not None
        return self.config.region


class Compiled(NamedTuple):
    """The compiled functions of one run; see the functions of this file.

    Attributes:
      score_and_select: ``score_and_select``.
      probe_loss: ``probe_loss``.
      errors: ``errors``.
      fit: ``fit``.
      fold: ``fold``.
    """

    score_and_select: Any
    probe_loss: Any
    errors: Any
    fit: Any
    fold: Any


def compile_for(problem: Problem) -> Compiled:
    """Return the compiled functions of a run; equal problems share them, where they can be compared."""
    try:
        return _shared(problem)
    except TypeError:  # a model that is no value, such as one that holds arrays
        return _compiled(problem)


@lru_cache(maxsize=16)
def _shared(problem: Problem) -> Compiled:
    return _compiled(problem)


def _compiled(problem: Problem) -> Compiled:
    return Compiled(
        jax.jit(partial(score_and_select, problem), static_argnames="form"),
        jax.jit(partial(probe_loss, problem)),
        jax.jit(partial(errors, problem)),
        jax.jit(partial(fit, problem)),
        jax.jit(partial(fold, problem)),
    )


class Form(NamedTuple):
    """How subsets are scored, which depends on the device: all of it is static.

    Attributes:
      num_classes: c, classes that occur.
      memory: bytes for scoring; 0 on a CPU.
      side: of ``medoids``, where each device has one subset.
      rounds: of ``medoids``.
    """

    num_classes: int
    memory: int
    side: int | None
    rounds: int | None


def _choose(
    problem: Problem,
    form: Form,
    params: Params,
    model_state: ModelState,
    examples: Examples,
    strata: Array,
    sample_weights: Array | None,
    indices: Array,
    key: Array | None,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """Score k subsets, [k, r].

    Returns picks, weights [k, m], losses [k * r], if all is finite [1], and how even lengths are [],
    without regions.
    """
    config, number = problem.config, indices.shape[0]
    found = embeddings, losses = _scored(problem, form, number, params, model_state, examples)
    finite = jnp.ones((), bool)
    for leaf in jax.tree.leaves(found):
        finite &= jnp.all(jnp.isfinite(leaf))
    # What is chosen until this is noticed must be a coreset.
    embeddings = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), embeddings)
    even = None
    if config.region is None:
        lengths = lengths_of(embeddings)
        if sample_weights is not None:
            lengths = lengths * sample_weights.reshape(-1)
        even = evenness(lengths)
    embeddings = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), embeddings)

    def one(
        embeddings: PyTree, strata: Array, sample_weights: Array | None, indices: Array
    ) -> tuple[Array, Array]:
        # Another draw for every subset, on whichever device it is scored; also where each is all data.
        places = 2 * jnp.arange(indices.shape[0], dtype=jnp.uint32) + 1
        turn = jnp.sum(places * indices.astype(jnp.uint32))
        own = None if key is None else jax.random.fold_in(key, turn)
        if config.picks == "importance":
            given = embeddings, strata
            return importance_sample(own, *given, size=config.batch_size, sample_weights=sample_weights)
        coreset = medoids(
            embeddings,
            strata,
            size=config.batch_size,
            num_classes=form.num_classes,
            side=form.side,
            rounds=form.rounds,
            sample_weights=sample_weights,
            key=own,
            by_class=config.by_class,
        )
        return coreset.indices, coreset.weights

    each = embeddings, strata, sample_weights, indices
    if number > 1:  # not for one: of a condition ``vmap`` runs both sides
        picks, weights = jax.vmap(one)(*each)
    else:
        picks, weights = jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], each)))
    return picks, weights, losses, finite[None], even


def _scored(
    problem: Problem,
    form: Form,
    number: int,
    params: Params,
    model_state: ModelState,
    examples: Examples,
) -> tuple[PyTree, Array]:
    """Return embeddings and losses of k subsets, [k * r]; several devices share out the rows of one."""
    mesh, rows = problem.mesh, count_of(examples)
    shares = num_devices(mesh) if rows % num_devices(mesh) == 0 else 1
    chunk = _at_once(problem, form, params, model_state, examples, rows // number // shares)
    scored: Any = partial(in_chunks, problem.embed_fn, chunk=chunk)
    if mesh is None or shares == 1:
        return scored(params, model_state, examples)
    apart, shared = PartitionSpec(mesh.axis_names), PartitionSpec()
    found = jax.shard_map(
        scored, mesh=mesh, in_specs=(shared, shared, apart), out_specs=apart, check_vma=False
    )(params, model_state, examples)
    return jax.lax.with_sharding_constraint(found, whole(mesh))


def _at_once(
    problem: Problem, form: Form, params: Params, model_state: ModelState, examples: Examples, size: int
) -> int:
    """Return how many examples are scored at once; ``size`` in a subset."""
    # Backward passes of convolutions take 11 times as long inside a loop on a CPU: they cut themselves.
    forward_only = not getattr(problem.embed_fn, "backward_passes", 0)
    if not (form.memory or forward_only):
        return size
    some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), examples)
    needed = bytes_needed(problem.embed_fn, params, model_state, some, keeps=not forward_only)
    if not form.memory:  # a product of few rows packs its matrix as often as one of many
        return size if needed <= CPU_CACHE else CPU_CHUNK
    return size * chunk_length(max(1, form.memory // max(1, needed)))


def score_and_select(
    problem: Problem,
    params: Params,
    model_state: ModelState,
    examples: Examples,
    indices: Array,
    classes: Array,
    held: tuple[Array, Array],
    slots: Array,
    exclusion: Exclusion,
    finite: Array,
    key: Array | None,
    form: Form,
) -> tuple[tuple[Array, Array], Noted, Array, Array | None]:
    """Score subsets, indices [g, r], and put their coresets at ``slots`` [g].

    Several devices share out the rows of one subset; of more, each takes equally many.

    ``examples`` are [g * r]; ``key`` is for picks by importance, and for mini-batches of fewer examples
    than classes. Returns the coresets held, the observations, whether all was finite, and how even the
    lengths of gradients are, without regions.
    """
    mesh, own = problem.mesh, problem.config.exclusion
    strata = classes[indices].astype(jnp.int32)
    left_at = exclusion.inactive.left_at
    keep = share_drawn(own)
    sample_weights = importance_weights(left_at, indices, keep) if keep > 0 else None
    chosen: Any = partial(_choose, problem, form)
    if mesh is not None and indices.shape[0] > 1:
        apart, shared = PartitionSpec(mesh.axis_names), PartitionSpec()
        chosen = jax.shard_map(
            partial(_choose, problem._replace(mesh=None), form),
            mesh=mesh,
            in_specs=(shared, shared, apart, apart, apart, apart, shared),
            out_specs=apart,
            check_vma=False,
        )
    found = chosen(params, model_state, examples, strata, sample_weights, indices, key)
    if mesh is not None:
        found = jax.lax.with_sharding_constraint(found, whole(mesh))
    picks, weights, losses, all_finite, even = found
    # Apart from the update below: the compiler of TPU v5e (libtpu 0.0.52) fails on both in one.
    picked = jax.lax.optimization_barrier(jnp.take_along_axis(indices, picks, axis=1))
    held = held[0].at[slots].set(picked, mode="drop"), held[1].at[slots].set(weights, mode="drop")
    noted = noted_in(exclusion)
    if own is not None:
        # What only fills the last turn of the devices was seen before; it comes last.
        number = jnp.sum(slots < held[0].shape[0], dtype=jnp.int32) * indices.shape[1]
        noted = observe(noted, indices.ravel(), losses, own.threshold, number)
    return held, noted, finite & jnp.all(all_finite), even


def probe_loss(
    problem: Problem, params: Params, model_state: ModelState, examples: Examples, weights: Array
) -> Array:
    """Return the weighted mean loss [] of the probe examples, in evaluation mode."""
    logits, _ = problem.apply_fn(params, model_state, examples.inputs, train=False, rng=None)
    return weighted_mean(per_example(problem.loss_fn, logits, examples.labels), weights)


def errors(
    problem: Problem, region: Region, params: Params, model_state: ModelState, examples: Examples
) -> tuple[Array, Array, Array]:
    """Measure the loss [] of the probe examples; return it, and ``rho`` of the model and of no change.

    With ``curvature="direction"`` the second-order term of the model is taken here: one product with
    the Hessian of the same examples at the anchor.
    """
    loss = probe_loss(problem, params, model_state, examples, region.probe_weights)
    bend = None
    if problem.region.curvature == "direction":
        delta = jax.tree.map(jnp.subtract, params, region.anchor)
        part = covered(delta, problem.region.curvature_of)
        delta = with_part(optax.tree.zeros_like(delta), part)
        at_anchor = _loss_of(problem, region.model_state, examples, region.probe_weights)
        bend = optax.tree.vdot(delta, hessian_vector_product(at_anchor, region.anchor, delta))
    rho = relative_error(predict(region, params, bend), loss)
    return loss, rho, relative_error(region.loss, loss)


def _loss_of(
    problem: Problem, model_state: ModelState, examples: Examples, weights: Array
) -> Callable[[Params], Array]:
    return lambda params: probe_loss(problem, params, model_state, examples, weights)


class Fit(NamedTuple):
    """Sums over weighted examples.

    Attributes:
      gradient: of the gradients.
      diagonal: of the Hessians' diagonals.
      weight: [], of the weights.
    """

    gradient: Params
    diagonal: Params
    weight: Array


def fit(
    problem: Problem,
    probes: Params,
    params: Params,
    model_state: ModelState,
    examples: Examples,
    weights: Array,
    before: Fit | None,
) -> Fit:
    """Add the gradient and the Hessian's diagonal of some weighted examples."""
    loss, weight = _loss_of(problem, model_state, examples, weights), jnp.sum(weights)
    pair = gradient_and_diagonal(probes, loss, params)
    gradient, diagonal = (optax.tree.scale(weight, x) for x in pair)
    found = Fit(gradient, diagonal, weight)
    return found if before is None else jax.tree.map(jnp.add, before, found)


def fold(problem: Problem, moments: Moments, fit: Fit) -> tuple[Moments, Params, Params | None, Array]:
    """Fold the mean into the moments.

    Returns the moments, the gradient and the diagonal of the model, and the curvature's norm [].
    """
    pair = (optax.tree.scale(1 / fit.weight, x) for x in (fit.gradient, fit.diagonal))
    smoothing = problem.region.smoothing
    beta1, beta2 = DECAYS[smoothing]
    moments, gradient, diagonal, norm = smooth(
        moments, *pair, smoothing=smoothing, beta1=beta1, beta2=beta2
    )
    return moments, gradient, diagonal if problem.region.curvature == "diagonal" else None, norm


new_probes = jax.jit(draw_probes, static_argnames="num_probes")
