"""CREST: mini-batch coresets, selected anew when a quadratic model of the loss stops being right.

Yang, Kang and Mirzasoleiman, "Towards Sustainable Learning: Coresets for Data-efficient Deep
Learning", ICML 2023, Algorithm 1. While a network trains, arrays are turned into Python numbers here,
when a region begins or a check is due, and in ``exclusion.turn_over``, when a window ends; a source on
the host also reads which rows to take.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crest_jax import _checks
from crest_jax.classes import classes_of
from crest_jax.config import CrestConfig
from crest_jax.curvature import covered, init_moments, restrict
from crest_jax.devices import num_devices, place
from crest_jax.embeddings import EmbedFn, logit_gradients
from crest_jax.exclusion import (
    end_window,
    init_exclusion,
    observe_losses,
    rows_needed,
    stands_for,
    take_all_back,
    turn_over,
    weighted_subset,
)
from crest_jax.kernels import (
    make_kernels,
    new_probes,
    shuffle_held,
)
from crest_jax.losses import cross_entropy, fitting, handed_back
from crest_jax.region import Region, check_interval
from crest_jax.state import CrestState, Event, Work, call, count_work
from crest_jax.streams import Lookahead, make_strata, next_subset, open_stream
from crest_jax.types import (
    ApplyFn,
    Array,
    Batch,
    LossFn,
    ModelState,
    Params,
    PhaseFn,
    PyTree,
    Selection,
    Source,
)

MOST_SIGHTINGS = 2**24  # held of an exclusion window, 64 MB
TRIES = 3  # anchors that are tried before bad numbers stop the run


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    """Copy arrays, so that a train step that donates its buffers cannot delete the anchor."""
    return jax.tree.map(jnp.copy, tree)


def most_sightings(config: CrestConfig) -> int:
    """Return how many sightings the longest exclusion window holds.

    A window ends at a check, up to an interval late. At worst every region ends at its first check, a
    step after it began; a region has as many coresets as its first interval asks for, each of which
    serves ``reuse`` steps, or as its curvature takes. Those of one region may come before their steps.

    Example:
      >>> config = CrestConfig(subset_size=256, exclude_window=100, max_interval=16, max_coresets=16)
      >>> most_sightings(config) == 256 * (100 + 16 + 16)
      True
    """
    fresh = math.ceil(config.coresets_per_interval / config.reuse)
    each_step = max(1, min(fresh, config.max_coresets), config.curvature_coresets)
    tries = TRIES if config.nonfinite == "skip" else 1
    steps = config.exclude_window + config.max_interval
    subsets = tries * (each_step * steps + config.max_coresets)
    return min(subsets * max(config.batch_size, config.subset_size), MOST_SIGHTINGS)


@jax.jit
def stacked(rows: list[Array]) -> Array:
    """Stack rows [r] to [g, r]."""
    return jnp.stack(rows)


def crest(
    apply_fn: ApplyFn,
    source: Source,
    config: CrestConfig | None = None,
    *,
    loss_fn: LossFn = cross_entropy,
    embed_fn: EmbedFn | None = None,
    phase: PhaseFn = call,
) -> Selection:
    """Choose mini-batches by CREST.

    At a region's anchor: probe rows are drawn and their loss is measured, ``P`` random subsets are
    drawn, scored, and one coreset of ``m`` is selected from each, and the gradient and the Hessian's
    diagonal are taken on the first coresets. Each coreset is one mini-batch, trained on whole. After
    ``T1`` steps the loss of the probe rows is compared with the quadratic model; the region ends when
    the relative error exceeds ``tau``. Outside the steps ``select_from`` to ``select_until``,
    mini-batches are random ones of the examples in play, and exclusion lives on the losses that the
    loop hands back through ``observe``.

    Args:
      apply_fn: the model. Everything here calls it in evaluation mode.
      source: the data, at least ``subset_size`` and ``probe_size`` examples.
      config: settings; None takes the defaults.
      loss_fn: per-example losses.
      embed_fn: gradient embeddings; None takes the gradient with respect to the logits.
      phase: runs each phase (``"selection"``, ``"curvature"``, ``"check"``); a script passes a timer.

    Returns:
      A ``Selection`` whose state is a ``CrestState`` and whose events are ``Event``.

    Raises:
      ValueError: when the source is smaller than a subset or the probe; from ``refresh``, when losses
        or embeddings have not one row for each example or a label has no logit; from ``observe``, when
        the losses are no floating-point numbers [m].
      FloatingPointError: from ``refresh``, on a NaN or infinite loss, embedding or curvature, also
        where ``observe`` was handed the loss; see ``CrestConfig.nonfinite``.

    Example:
      >>> import numpy as np
      >>> from crest_jax.data import ArraySource
      >>> inputs = np.eye(8, dtype=np.float32)
      >>> source = ArraySource(inputs, np.arange(8) % 2)
      >>> def linear(params, state, inputs, *, train, rng):
      ...     return inputs @ params, state
      >>> config = CrestConfig(batch_size=4, subset_size=8, probe_size=8)
      >>> selection = crest(linear, source, config)
      >>> params = jnp.zeros((8, 2))
      >>> state = selection.init(jax.random.key(0), params, {})
      >>> state, event = selection.refresh(state, params, {})
      >>> state, batch = selection.next_batch(state)
      >>> event.reason, batch.weights.sum().tolist()
      ('start', 8.0)
    """
    config = config if config is not None else CrestConfig()
    count, partition = len(source), classes_of(source.labels)
    num_classes = partition.number
    for name in ("subset_size", "probe_size"):
        _checks.require(
            getattr(config, name) <= count,
            f"{name} is {getattr(config, name)} but the data hold {count} examples; lower {name}.",
        )
    embed_fn = embed_fn or logit_gradients(apply_fn, loss_fn)
    backward_passes = getattr(embed_fn, "backward_passes", 0)
    largest_share = float(np.bincount(partition.codes).max() / count)
    mesh = getattr(source, "mesh", None)
    group = num_devices(mesh)
    ahead = Lookahead(source)
    fitting_loss = fitting(loss_fn, source.labels)
    kernels = make_kernels(config, apply_fn, fitting_loss, embed_fn, largest_share, mesh)
    strata = make_strata(partition.codes, num_classes, mesh=mesh)
    classes = strata.classes
    keep = config.exclude_keep
    until = math.inf if config.select_until is None else config.select_until
    skipping = config.nonfinite == "skip"
    capacity = most_sightings(config) if config.exclude_below > 0 else 1
    needed = rows_needed(partition.codes, num_classes, max(config.subset_size, config.probe_size))

    def init(key: Array, params: Params, model_state: ModelState) -> CrestState:
        stream_key, key = jax.random.split(place(_checks.prng_key("key", key), mesh))
        # Nothing was seen, so this changes nothing, and compiles now what a later window needs.
        fresh = init_exclusion(count, num_classes, capacity=capacity, windows=config.exclude_for)
        exclusion, *_ = end_window(
            place(fresh, mesh), classes, strata.sizes, needed, config.exclude_for
        )
        part = covered(params, config.curvature_of)
        region = Region(
            anchor=_copy(params),
            model_state=_copy(model_state),
            probe_rows=jnp.zeros(config.probe_size, jnp.int32),
            probe_weights=jnp.ones(config.probe_size, jnp.float32),
            loss=jnp.zeros((), jnp.float32),
            gradient=optax.tree.zeros_like(params),
            curvature=optax.tree.zeros_like(part),
        )
        shape = (config.max_coresets, config.batch_size)
        state = CrestState(
            step=0,
            cursor=0,
            held=0,
            interval=0,
            next_check=0,
            window_end=config.exclude_window,
            reference_norm=math.nan,
            norm=math.nan,
            regions=0,
            selected=0,
            unused=0,
            excluded=0,
            work=Work(),
            finite=sound(),
            key=key,
            stream=open_stream(stream_key, num_classes),
            exclusion=exclusion,
            moments=init_moments(params, part, smoothing=config.smoothing),
            region=region,
            rows=jnp.zeros(shape, jnp.int32),
            weights=jnp.zeros(shape, jnp.float32),
        )
        return place(state, mesh)

    def sound() -> Array:
        return place(jnp.ones((), bool), mesh)

    def draw(state: CrestState, size: int) -> tuple[CrestState, Array]:
        stream, rows = next_subset(state.stream, strata, size, state.exclusion, keep)
        return state._replace(stream=stream), rows

    def groups(state: CrestState, number: int) -> tuple[CrestState, list[Array]]:
        """Draw subsets, rows [g, r] for each turn of all devices; the first fills the last turn."""
        drawn = []
        for _ in range(number):
            state, rows = draw(state, config.subset_size)
            drawn.append(rows)
        turns = range(0, number, group)
        return state, [stacked((drawn[i : i + group] + drawn[:1] * group)[:group]) for i in turns]

    def probe(
        state: CrestState, params: Params, model_state: ModelState
    ) -> tuple[CrestState, Array, float]:
        """Measure the loss of the probe rows, for the device and for the host."""
        region = state.region
        examples = source.take(region.probe_rows)
        loss = kernels.probe_loss(params, model_state, examples, region.probe_weights)
        return count_work(state, check_forward=config.probe_size), loss, float(loss)

    def select(state: CrestState, params: Params, model_state: ModelState, number: int) -> CrestState:
        """Append coresets selected at these parameters."""
        state, turns = groups(state, number)
        flat = [rows.ravel() for rows in turns]
        ahead.fetch(flat[0])
        for turn, rows in enumerate(turns):
            if turn + 1 < len(turns):
                ahead.fetch(flat[turn + 1])
            slots = state.held + turn * group + np.arange(group, dtype=np.int32)
            slots = np.where(slots < state.held + number, slots, config.max_coresets).astype(np.int32)
            held, (log, logged), finite = kernels.score_and_select(
                params,
                model_state,
                source.take(flat[turn]),
                rows,
                classes,
                (state.rows, state.weights),
                slots,
                state.exclusion,
                state.finite,
                state.key if config.batch_size < num_classes else None,
                num_classes,
            )
            exclusion = state.exclusion._replace(log=log, logged=logged)
            state = state._replace(rows=held[0], weights=held[1], exclusion=exclusion, finite=finite)
        scored = number * config.subset_size
        state = count_work(state, selection_forward=scored, selection_backward=scored * backward_passes)
        return state._replace(held=state.held + number, selected=state.selected + number)

    def mixed(state: CrestState) -> CrestState:
        """Shuffle the union of the coresets held, where that is asked for."""
        if not config.reshuffle:
            return state
        key, shuffle_key = jax.random.split(state.key)
        rows, weights = shuffle_held(shuffle_key, state.rows, state.weights, np.int32(state.held))
        return state._replace(key=key, rows=rows, weights=weights)

    def check(
        state: CrestState, params: Params, model_state: ModelState
    ) -> tuple[CrestState, float, float]:
        state, array, loss = probe(state, params, model_state)
        return state, loss, float(kernels.error(state.region, params, array))

    def anchor_curvature(state: CrestState, params: Params, model_state: ModelState) -> CrestState:
        """Take gradient and curvature on the first coresets held."""
        key, probe_key = jax.random.split(state.key)
        rows = state.rows[: config.curvature_coresets].ravel()
        weights = state.weights[: config.curvature_coresets].ravel()
        part = restrict(params, state.region.curvature)
        probes = new_probes(probe_key, part, config.hutchinson_probes)
        moments, gradient, curvature, norm = kernels.curvature(
            probes, params, model_state, source.take(rows), weights, state.moments
        )
        passes = len(rows) * (1 + config.hutchinson_probes)
        state = count_work(state, curvature_forward=passes, curvature_backward=passes)
        region = state.region._replace(gradient=gradient, curvature=curvature)
        state = state._replace(key=key, moments=moments, region=region, norm=float(norm))
        taken = not math.isnan(state.reference_norm) or not math.isfinite(state.norm)
        if not taken and state.step >= (config.reference_step or 0):
            state = state._replace(reference_norm=state.norm)
        return state

    def begin_sound_region(
        state: CrestState, params: Params, model_state: ModelState
    ) -> tuple[CrestState, float]:
        """Begin a region, on other examples where those drawn first are bad and may be skipped."""
        state = state._replace(finite=sound()) if skipping else state
        found, loss = begin_region(state, params, model_state)
        names = ("moments", "reference_norm", "regions", "finite")
        for _ in range(TRIES - 1 if skipping else 0):
            if math.isfinite(loss) and math.isfinite(found.norm):
                break
            kept = {name: getattr(state, name) for name in names}
            found, loss = begin_region(found._replace(**kept), params, model_state)
        return found, loss

    def dropped(state: CrestState) -> CrestState:
        """Throw away the coresets held; those that no step used are counted."""
        unused = state.held - min(state.cursor, state.held)
        return state._replace(unused=state.unused + unused, cursor=0, held=0)

    def begin_region(
        state: CrestState, params: Params, model_state: ModelState
    ) -> tuple[CrestState, float]:
        state, probe_rows = draw(dropped(state), config.probe_size)
        region = state.region._replace(
            anchor=_copy(params),
            model_state=_copy(model_state),
            probe_rows=probe_rows,
            probe_weights=stands_for(state.exclusion.rest, probe_rows, keep),
        )
        state = state._replace(region=region)
        state, array, loss = phase("check", probe, state, params, model_state)
        state = state._replace(region=state.region._replace(loss=array))
        first = config.curvature_coresets
        state = phase("selection", select, state, params, model_state, first)
        state = phase("curvature", anchor_curvature, state, params, model_state)
        interval = check_interval(
            state.reference_norm,
            state.norm,
            multiplier=config.interval_multiplier,
            maximum=config.max_interval,
        )
        more = num_coresets(state, interval) - first
        if more > 0:
            state = phase("selection", select, state, params, model_state, more)
        state = phase("selection", mixed, state)._replace(
            interval=interval, next_check=state.step + interval, regions=state.regions + 1
        )
        return state, loss

    def num_coresets(state: CrestState, interval: int) -> int:
        wanted = config.coresets_per_interval * interval / config.reuse
        left = until - state.step
        return min(config.max_coresets, math.ceil(min(wanted, left / config.reuse)))

    def extend(state: CrestState, params: Params, model_state: ModelState) -> CrestState:
        """Select the coresets of another interval in the same region."""
        if config.exhausted == "anchor":
            params, model_state = state.region.anchor, state.region.model_state
        state = state._replace(cursor=0, held=0)
        left = max(1, -(-(state.next_check - state.step) // config.reuse))
        return mixed(select(state, params, model_state, min(num_coresets(state, state.interval), left)))

    def exclude(state: CrestState) -> CrestState:
        windows, window, sizes = config.exclude_for, config.exclude_window, strata.sizes
        return turn_over(state, classes, sizes, needed, windows, window, skipping=skipping)

    def turned_over(state: CrestState) -> CrestState:
        """Close the exclusion window where it is over, and all windows where exclusion is."""
        if not excluding(state.step):
            over = state.excluded == 0
            return state if over else phase("selection", take_all_back, state)
        if state.step < state.window_end:
            return state
        return phase("selection", exclude, state)

    def selecting(step: int) -> bool:
        return config.select_from <= step < until

    def excluding(step: int) -> bool:
        return config.exclude_below > 0 and step < (config.exclude_until or math.inf)

    def event(
        state: CrestState, reason: str, rho: float | None, loss: float | None, coresets: int
    ) -> Event:
        return Event(
            step=state.step,
            reason=reason,
            region=state.regions,
            rho=rho,
            loss=loss,
            interval=state.interval,
            coresets=coresets,
            selected=state.selected,
            unused=state.unused,
            excluded=state.excluded,
            curvature_norm=state.norm,
            work=state.work,
        )

    def refresh_random(state: CrestState) -> tuple[CrestState, Event | None]:
        before = state.excluded
        state = turned_over(state)
        if state.held > 0:
            state = dropped(state)
            return state, event(state, "random", None, None, 0)
        if state.excluded != before:
            return state, event(state, "window", None, None, 0)
        return state, None

    def refresh(
        state: CrestState, params: Params, model_state: ModelState
    ) -> tuple[CrestState, Event | None]:
        if not selecting(state.step):
            return refresh_random(state)
        due = state.step >= state.next_check
        empty = state.cursor == state.held * config.reuse
        if not (due or empty):
            return state, None
        if due:
            state = turned_over(state)
        selected = state.selected
        reason, rho, loss = "held", None, None
        if state.regions == 0:
            reason = "start"
        elif due:
            state, loss, rho = phase("check", check, state, params, model_state)
            if skipping and not (state.finite and math.isfinite(loss)):
                reason = "nonfinite"
            elif not rho <= config.tau:
                reason = "error"
            else:
                state = state._replace(next_check=state.step + state.interval)
        if reason == "held" and empty and config.exhausted == "reanchor":
            reason = "exhausted"
        if reason != "held":
            state, loss = begin_sound_region(state, params, model_state)
        elif empty:
            state = phase("selection", extend, state, params, model_state)
        for name, value in (("loss on the probe rows", loss), ("curvature's norm", state.norm)):
            if value is not None and not math.isfinite(value):
                raise FloatingPointError(
                    f"the {name} is {value} at step {state.step} (region {state.regions}) but must be "
                    "finite; lower the learning rate or look for bad inputs."
                )
        if due and not skipping and not state.finite:
            raise FloatingPointError(
                "a loss or an embedding of the scored examples was NaN or infinite before step "
                f"{state.step} (region {state.regions}) but all must be finite; lower the learning "
                "rate or look for bad inputs."
            )
        return state, event(state, reason, rho, loss, state.selected - selected)

    def next_batch(state: CrestState) -> tuple[CrestState, Batch]:
        if not selecting(state.step):
            rest, out = state.exclusion.rest, state.exclusion.out
            drawn = ahead.draw(
                weighted_subset, state.stream, strata, rest, out, config.batch_size, keep
            )
            stream, rows, weights = drawn
            batch = Batch(*source.take(rows), weights, rows)
            return state._replace(step=state.step + 1, stream=stream), batch
        _checks.require(
            state.cursor < state.held * config.reuse,
            f"next_batch was called with {state.cursor} of {state.held} coresets used but needs an "
            "unused one; call refresh before every next_batch.",
        )
        index, last = state.cursor % state.held, state.held - 1
        rows, weights = ahead.nth_coreset(state.rows, state.weights, index, last)
        examples = source.take(rows)
        batch = Batch(examples.inputs, examples.labels, weights, rows)
        return state._replace(step=state.step + 1, cursor=state.cursor + 1), batch

    def observe(state: CrestState, batch: Batch, losses: Array) -> CrestState:
        handed_back(losses, batch.rows)  # checked at every step, also where they are not needed
        if not excluding(state.step) or selecting(state.step - 1):
            return state
        below = config.exclude_below
        return state._replace(exclusion=observe_losses(state.exclusion, batch.rows, losses, below))

    return Selection(init, refresh, next_batch, observe)
