"""Other published ways of choosing examples, behind the three functions of every ``Selection``.

Each follows its paper; where a paper's choice of mini-batches could only add noise, the stratified
draws that CREST's own subsets use serve all alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.classes import classes_of
from crest_jax.devices import place
from crest_jax.embeddings import (
    EmbedFn,
    Factored,
    FeaturesFn,
    embed_rows,
    last_layer_gradients,
    logit_gradients,
)
from crest_jax.losses import cross_entropy, fitting, labels_fit, per_example
from crest_jax.matching import lower_validation_loss, match_by_class
from crest_jax.planning import quotas_for
from crest_jax.selection import select_coreset
from crest_jax.state import Work, call
from crest_jax.streams import RowStream, make_strata, next_subset, open_stream
from crest_jax.subset import Subset, subset_batches
from crest_jax.types import (
    ApplyFn,
    Array,
    Batch,
    Examples,
    LossFn,
    ModelState,
    Params,
    PhaseFn,
    PyTree,
    Selection,
    Source,
)

# (key, params, model_state) -> scores [n]
ScoreFn = Callable[[Array, Params, ModelState], np.ndarray]
GLISTER_ROUNDS = 15  # as in the paper's experiments
HELD_OUT = 10  # GLISTER judges by one row in so many


def fixed_subset(source: Source, batch_size: int, size: int, *, phase: PhaseFn = call) -> Selection:
    """Train on one random subset, stratified by class, chosen before the first step.

    Args:
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples in the subset.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``.

    Example:
      >>> from crest_jax.data import ArraySource
      >>> selection = fixed_subset(ArraySource(np.eye(6), np.arange(6) % 2), 2, 4)
      >>> state, _ = selection.refresh(selection.init(jax.random.key(0), None, None), None, None)
      >>> len(set(state.strata.members.tolist()))
      4
    """
    groups = classes_of(source.labels)
    strata = make_strata(groups.codes, groups.number)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        del params, model_state
        rows = next_subset(open_stream(key, groups.number), strata, size)[1]
        return Subset(rows, np.ones(size))

    return subset_batches(source, batch_size, size, choose, phase=phase)


def _fitting_embed(embed_fn: EmbedFn, loss_fn: LossFn, source: Source) -> EmbedFn:
    """Compile an embedding by logit gradients, which refuses a label without a logit when first traced.

    Logit gradients, and the left factors of last-layer gradients, have a column for each logit.
    """
    highest = int(np.max(source.labels)) if loss_fn is cross_entropy else -1

    def embed(params: Params, model_state: ModelState, examples: Examples) -> tuple[PyTree, Array]:
        embeddings, losses = embed_fn(params, model_state, examples)
        labels_fit(highest, jax.tree.leaves(embeddings)[0].shape[1])
        return embeddings, losses

    return jax.jit(embed)


def craig(
    apply_fn: ApplyFn,
    source: Source,
    batch_size: int,
    size: int,
    *,
    every: int,
    loss_fn: LossFn = cross_entropy,
    embed_fn: EmbedFn | None = None,
    phase: PhaseFn = call,
) -> Selection:
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
      >>> from crest_jax.data import ArraySource
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> source = ArraySource(np.eye(6, dtype=np.float32), np.arange(6) % 2)
      >>> selection = craig(linear, source, 2, 4, every=10)
      >>> state = selection.init(jax.random.key(0), jnp.zeros((6, 2)), {})
      >>> float(selection.refresh(state, jnp.zeros((6, 2)), {})[0].weights[jnp.array([0, 1])].sum())
      4.0
    """
    if embed_fn is None:
        embed = _fitting_embed(logit_gradients(apply_fn, loss_fn), loss_fn, source)
    else:
        embed = jax.jit(embed_fn)
    rows, groups = np.arange(len(source)), classes_of(source.labels)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        embeddings, _ = embed_rows(embed, params, model_state, source, rows)
        coreset = select_coreset(
            embeddings, size, labels=groups.codes, num_classes=groups.number, key=key
        )
        return Subset(coreset.indices, coreset.weights)

    work = Work(selection_forward=len(source))
    return subset_batches(source, batch_size, size, choose, every=every, work=work, phase=phase)


def gradmatch(
    features_fn: FeaturesFn,
    source: Source,
    batch_size: int,
    size: int,
    *,
    every: int,
    per_batch: bool = False,
    ridge: float = 0.01,
    loss_fn: LossFn = cross_entropy,
    phase: PhaseFn = call,
) -> Selection:
    """Train on a weighted subset whose gradients add up to those of the data.

    Orthogonal matching pursuit on last-layer gradients with non-negative, ridge-regularised weights
    (Killamsetty et al., GRAD-MATCH, ICML 2021, Algorithm 2), either in each class (GradMatch) or among
    whole mini-batches, all of whose examples get the batch's weight (GradMatchPB). As in the authors'
    code an example that no weight is left for stands for itself.

    Args:
      features_fn: what the last layer reads, and the logits, in evaluation mode.
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples in the subset; ``per_batch`` takes whole mini-batches, one of them in part.
      every: steps after which it is chosen anew.
      per_batch: match by mini-batches instead of by examples.
      ridge: ridge on the weights, relative to the mean squared length of a gradient.
      loss_fn: per-example losses.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``; also when ``ridge`` is not above 0 and, from ``refresh``, when
        a label has no logit.

    Example:
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(6, dtype=np.float32), np.arange(6) % 2)
      >>> features = lambda params, state, inputs: (inputs, inputs @ params)
      >>> selection = gradmatch(features, source, 2, 4, every=10)
      >>> state = selection.init(jax.random.key(0), jnp.zeros((6, 2)), {})
      >>> len(selection.refresh(state, jnp.zeros((6, 2)), {})[0].strata.members)
      4
    """
    _checks.in_range("ridge", ridge, 0.0, 1e6, open_low=True)
    embed = _fitting_embed(last_layer_gradients(features_fn, loss_fn), loss_fn, source)
    count, groups = len(source), classes_of(source.labels)
    everything = np.arange(count)
    counts = np.bincount(groups.codes).astype(np.int32)
    quotas = quotas_for(counts[None], size, "proportional")[0].astype(np.int32)
    order = np.argsort(groups.codes, kind="stable").astype(np.int32)

    def by_class(key: Array, params: Params, model_state: ModelState) -> Subset:
        del key
        gradients = _on_device(embed_rows(embed, params, model_state, source, everything)[0])
        found = match_by_class(
            gradients, order, jnp.asarray(counts), jnp.asarray(quotas), jnp.float32(ridge),
            rounds=int(quotas.max()), block=int(counts.max()),
        )  # fmt: skip
        used = np.arange(found.indices.shape[1])[None, :] < quotas[:, None]
        return _stands_for_itself(np.asarray(found.indices)[used], np.asarray(found.weights)[used])

    def by_batch(key: Array, params: Params, model_state: ModelState) -> Subset:
        gradients = _on_device(embed_rows(embed, params, model_state, source, everything)[0])
        shuffled = jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32))
        whole = count // batch_size
        means = _batch_sums(gradients, shuffled[: whole * batch_size].reshape(whole, batch_size))
        wanted = min(-(-size // batch_size), whole)
        found = match_by_class(
            means, jnp.arange(whole), jnp.array([whole]), jnp.array([wanted]), jnp.float32(ridge),
            rounds=wanted, block=whole,
        )  # fmt: skip
        groups = np.asarray(shuffled)[: whole * batch_size].reshape(whole, batch_size)
        rows = groups[np.asarray(found.indices[0])].reshape(-1)
        weights = np.repeat(np.asarray(found.weights[0]), batch_size)
        if len(rows) < size:  # fewer rows than asked in whole batches: the next of the shuffle
            rest = np.setdiff1d(np.asarray(shuffled), rows, assume_unique=True)[: size - len(rows)]
            rows, weights = np.append(rows, rest), np.append(weights, np.zeros(len(rest)))
        return _stands_for_itself(rows[:size], weights[:size])

    choose = by_batch if per_batch else by_class
    work = Work(selection_forward=count)
    return subset_batches(source, batch_size, size, choose, every=every, work=work, phase=phase)


def _on_device(embeddings: Factored) -> Factored:
    return Factored(jnp.asarray(embeddings.left), jnp.asarray(embeddings.right))


@jax.jit
def _batch_sums(gradients: Factored, groups: Array) -> Array:
    """Sums [g, c d] of the gradients of groups [g, m] of rows."""
    left, right = gradients.left[groups], gradients.right[groups]
    sums = jnp.einsum("gmc,gmd->gcd", left, right, precision="highest")
    return sums.reshape(groups.shape[0], -1)


def _stands_for_itself(rows: np.ndarray, weights: np.ndarray) -> Subset:
    return Subset(rows, np.where(weights > 1e-3 * max(weights.mean(), 1e-30), weights, 1.0))


def glister(
    features_fn: FeaturesFn,
    source: Source,
    batch_size: int,
    size: int,
    *,
    every: int,
    rate: float,
    loss_fn: LossFn = cross_entropy,
    phase: PhaseFn = call,
) -> Selection:
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
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(20, dtype=np.float32), np.arange(20) % 2)
      >>> features = lambda params, state, inputs: (inputs, inputs @ params)
      >>> selection = glister(features, source, 2, 4, every=10, rate=0.1)
      >>> state = selection.init(jax.random.key(0), jnp.zeros((20, 2)), {})
      >>> len(selection.refresh(state, jnp.zeros((20, 2)), {})[0].strata.members)
      4
    """
    _checks.in_range("rate", rate, 0.0, 1e6, open_low=True)
    count = len(source)
    held = max(1, count // HELD_OUT)
    _checks.require(
        size <= count - held,
        f"size is {size} but GLISTER holds out {held} of {count} examples to judge by; lower size to "
        f"{count - held}.",
    )
    # The validation gradient is that of the cross-entropy, whatever the loss.
    embed = _fitting_embed(last_layer_gradients(features_fn, loss_fn), cross_entropy, source)
    read = jax.jit(lambda p, s, e: (features_fn(p, s, e.inputs), jnp.zeros(e.labels.shape[0])))
    groups = classes_of(source.labels)
    strata = make_strata(groups.codes, groups.number)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        judges = np.asarray(next_subset(open_stream(key, groups.number), strata, held)[1])
        pool = np.setdiff1d(np.arange(count), judges, assume_unique=True)
        gradients = _on_device(embed_rows(embed, params, model_state, source, pool)[0])
        (features, logits), _ = embed_rows(read, params, model_state, source, judges)
        features = np.concatenate([features, np.ones((held, 1), np.float32)], axis=1)
        own, theirs = groups.codes[pool], np.asarray(source.labels)[judges]
        counts = np.bincount(own, minlength=groups.number)
        quotas = quotas_for(counts[None], size, "proportional")[0]
        chosen = lower_validation_loss(
            gradients, jnp.asarray(own), jnp.asarray(quotas, jnp.int32), jnp.asarray(features),
            jnp.asarray(logits), jnp.asarray(theirs), jnp.float32(rate), rounds=GLISTER_ROUNDS,
        )  # fmt: skip
        return Subset(pool[np.asarray(chosen)], np.ones(size))

    work = Work(selection_forward=count)
    return subset_batches(source, batch_size, size, choose, every=every, work=work, phase=phase)


def pruned(
    source: Source,
    batch_size: int,
    size: int,
    scores: np.ndarray | ScoreFn,
    *,
    work: Work | None = None,
    phase: PhaseFn = call,
) -> Selection:
    """Train on the examples with the highest scores, each class in proportion.

    With ``el2n_scores`` or ``forgetting_scores`` this is the pruning of Paul, Ganguli and Dziugaite
    (NeurIPS 2021) and of Toneva et al. (ICLR 2019). Equal scores go to the lowest row.

    Args:
      source: the data.
      batch_size: examples in a mini-batch.
      size: examples to keep.
      scores: [n], or a function ``(key, params, model_state) -> scores`` called before the first step.
      work: examples that the function passes through models.
      phase: runs ``"selection"``.

    Raises:
      ValueError: see ``subset_batches``; also when there is not one score for each example or one is
        NaN.

    Example:
      >>> from crest_jax.data import ArraySource
      >>> source = ArraySource(np.eye(4), np.array([0, 0, 1, 1]))
      >>> selection = pruned(source, 2, 2, np.array([1.0, 2.0, 4.0, 3.0]))
      >>> state, _ = selection.refresh(selection.init(jax.random.key(0), None, None), None, None)
      >>> sorted(state.strata.members.tolist())
      [1, 2]
    """
    groups = classes_of(source.labels)
    counts = np.bincount(groups.codes, minlength=groups.number)

    def checked(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        _checks.require(
            values.shape == (len(source),) and not np.isnan(values).any(),
            f"scores have shape {values.shape} and {int(np.isnan(values).sum())} are NaN but there "
            f"must be one number for each of {len(source)} examples; score every example.",
        )
        return values

    if not callable(scores):
        scores = checked(scores)

    def choose(key: Array, params: Params, model_state: ModelState) -> Subset:
        values = checked(scores(key, params, model_state)) if callable(scores) else scores
        quotas = quotas_for(counts[None], size, "proportional")[0]
        order = np.lexsort((-values, groups.codes))
        own = groups.codes[order]
        rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[own]
        return Subset(order[rank < quotas[own]], np.ones(size))

    return subset_batches(source, batch_size, size, choose, work=work, phase=phase)


def el2n_scores(
    apply_fn: ApplyFn, params: Params, model_state: ModelState, source: Source
) -> np.ndarray:
    """Return the error norms ``|softmax(z) - onehot(y)|`` [n] of all examples.

    Paul, Ganguli and Dziugaite (NeurIPS 2021, Section 2); they average over networks early in training.

    Args:
      apply_fn: the model; called in evaluation mode.
      params: model parameters.
      model_state: model state.
      source: the data.

    Raises:
      ValueError: when a label has no logit.
      FloatingPointError: when a loss is NaN or infinite.

    Example:
      >>> from crest_jax.data import ArraySource
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> source = ArraySource(np.eye(2, dtype=np.float32), np.arange(2))
      >>> [round(x, 4) for x in el2n_scores(linear, jnp.zeros((2, 2)), {}, source).tolist()]
      [0.7071, 0.7071]
    """
    embed = _fitting_embed(logit_gradients(apply_fn), cross_entropy, source)
    residuals, _ = embed_rows(embed, params, model_state, source, np.arange(len(source)))
    return np.linalg.norm(residuals, axis=1)


class Forgetting(NamedTuple):
    """What is known of each example's predictions over a run."""

    right: np.ndarray  # [n], bool, whether it was classified correctly when last seen
    ever: np.ndarray  # [n], bool, whether it ever was
    events: np.ndarray  # [n], int32, times it went from correct to wrong


def init_forgetting(count: int) -> Forgetting:
    """Return the state for ``count`` examples, none seen.

    Example:
      >>> init_forgetting(2).events.tolist()
      [0, 0]
    """
    return Forgetting(np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.int32))


def observe_predictions(state: Forgetting, rows: np.ndarray, right: np.ndarray) -> Forgetting:
    """Record whether the examples at ``rows`` [b], all different, are classified correctly [b].

    Example:
      >>> state = observe_predictions(init_forgetting(2), np.array([0, 1]), np.array([True, False]))
      >>> observe_predictions(state, np.array([0]), np.array([False])).events.tolist()
      [1, 0]
    """
    was, ever, events = state.right.copy(), state.ever.copy(), state.events.copy()
    events[rows] += was[rows] & ~right
    was[rows] = right
    ever[rows] |= right
    return Forgetting(was, ever, events)


def forgetting_scores(state: Forgetting) -> np.ndarray:
    """Return the forgetting events [n] of each example, infinite where it was never learned.

    Toneva et al. (ICLR 2019, Section 3).

    Example:
      >>> forgetting_scores(init_forgetting(1)).tolist()
      [inf]
    """
    return np.where(state.ever, state.events, np.inf)


@jax.jit
def _handed_out(rows: Array) -> tuple[Array, Array]:
    """Return weights [m] of 1 and a copy of rows [m], since a mini-batch may be donated."""
    return jnp.ones(rows.shape, jnp.float32), jnp.copy(rows)


class HardestState(NamedTuple):
    """The state of ``hardest_batches``."""

    step: int  # batches handed out
    chosen: int  # batches chosen
    work: Work
    stream: RowStream
    rows: Array  # [m], int32, the next batch


def hardest_batches(
    apply_fn: ApplyFn,
    source: Source,
    batch_size: int,
    pool_size: int,
    *,
    loss_fn: LossFn = cross_entropy,
    phase: PhaseFn = call,
) -> Selection:
    """Train on the examples of highest loss in each large random batch.

    Online batch selection (Loshchilov and Hutter, ICLR 2016 workshop; Kawaguchi and Lu, Ordered SGD,
    AISTATS 2020): before each step ``pool_size`` examples are drawn, stratified by class, and the
    ``batch_size`` with the highest losses are trained on.

    Args:
      apply_fn: the model; called in evaluation mode.
      source: the data.
      batch_size: examples in a mini-batch.
      pool_size: examples drawn for it, at least ``batch_size`` and at most ``len(source)``.
      loss_fn: per-example losses.
      phase: runs ``"selection"``.

    Raises:
      ValueError: when the sizes are out of range; from ``refresh``, when a label has no logit or
        ``loss_fn`` returns not one loss for each example.

    Example:
      >>> from crest_jax.data import ArraySource
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> source = ArraySource(np.diag([1.0, 2.0, 3.0, 4.0]), np.zeros(4, int), 2)
      >>> selection = hardest_batches(linear, source, 2, 4)
      >>> params = jnp.array([[0.0, 1.0]] * 4)
      >>> state, _ = selection.refresh(selection.init(jax.random.key(0), params, {}), params, {})
      >>> sorted(selection.next_batch(state)[1].rows.tolist())
      [2, 3]
    """
    count = len(source)
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("pool_size", pool_size)
    _checks.require(
        batch_size <= pool_size <= count,
        f"pool_size is {pool_size} but must lie between batch_size, {batch_size}, and the number of "
        f"examples, {count}; choose a size there.",
    )
    mesh, groups = getattr(source, "mesh", None), classes_of(source.labels)
    strata = make_strata(groups.codes, groups.number, mesh=mesh)
    fitting_loss = fitting(loss_fn, source.labels)

    @jax.jit
    def hardest(params: Params, model_state: ModelState, examples: Examples, rows: Array) -> Array:
        logits, _ = apply_fn(params, model_state, examples.inputs, train=False, rng=None)
        losses = per_example(fitting_loss, logits, examples.labels)
        return rows[jax.lax.top_k(losses, batch_size)[1]]

    def init(key: Array, params: Params, model_state: ModelState) -> HardestState:
        del params, model_state
        stream, rows = open_stream(key, groups.number), jnp.zeros(batch_size, jnp.int32)
        return HardestState(0, 0, Work(), place(stream, mesh), place(rows, mesh))

    def select(state: HardestState, params: Params, model_state: ModelState) -> HardestState:
        stream, rows = next_subset(state.stream, strata, pool_size)
        picked = hardest(params, model_state, source.take(rows), rows)
        work = state.work._replace(selection_forward=state.work.selection_forward + pool_size)
        return state._replace(chosen=state.chosen + 1, stream=stream, rows=picked, work=work)

    def refresh(
        state: HardestState, params: Params, model_state: ModelState
    ) -> tuple[HardestState, None]:
        if state.chosen > state.step:
            return state, None
        return phase("selection", select, state, params, model_state), None

    def next_batch(state: HardestState) -> tuple[HardestState, Batch]:
        _checks.require(
            state.chosen > state.step,
            f"next_batch was called at step {state.step} with no batch chosen but needs one; call "
            "refresh before every next_batch.",
        )
        batch = Batch(*source.take(state.rows), *_handed_out(state.rows))
        return state._replace(step=state.step + 1), batch

    return Selection(init, refresh, next_batch)
