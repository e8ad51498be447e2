"""What never changes in a run of CREST, checked once."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.algorithm.compiled import Compiled, Problem, compile_for
from crest_jax.algorithm.config import CrestConfig, RegionConfig
from crest_jax.algorithm.nonfinite import TRIES
from crest_jax.data.classes import classes_in, one_class
from crest_jax.data.devices import num_devices, place
from crest_jax.data.pool import PoolRules, make_rules
from crest_jax.data.prefetch import Lookahead
from crest_jax.data.strata import compact
from crest_jax.gradients.embeddings import default_gradients, logit_gradients
from crest_jax.gradients.losses import class_numbers, fitting, is_cross_entropy
from crest_jax.types import ApplyFn, Array, EmbedFn, LossFn, ModelState, Params, PhaseFn, Source


class Model(NamedTuple):
    """The network at one moment.

    Attributes:
      params: parameters ``w``.
      state: model state.
    """

    params: Params
    state: ModelState


class Parts(NamedTuple):
    """What never changes in a run.

    Attributes:
      problem: what the compiled functions are made from.
      source: the data.
      rules: which examples may be drawn.
      classes: [n], unsigned integers, the class that each example is chosen in.
      num_classes: c, classes that occur.
      largest_share: share of the largest class among all examples.
      compiled: the compiled functions.
      ahead: fetches the next examples.
      phase: runs "selection", "curvature" and "check".
      backward_passes: those of the embedding, for each example.
    """

    problem: Problem
    source: Source
    rules: PoolRules
    classes: Array
    num_classes: int
    largest_share: float
    compiled: Compiled
    ahead: Lookahead
    phase: PhaseFn
    backward_passes: int

    @property
    def config(self) -> CrestConfig:
        """Settings."""
        return self.problem.config

    @property
    def region(self) -> RegionConfig:
        """Settings of regions, where coresets are kept."""
        return self.problem.region

    @property
    def draws_picks(self) -> bool:
        """Whether a choice takes a key."""
        return self.config.picks == "importance" or self.config.batch_size < self.num_classes

    @property
    def devices(self) -> int:
        """Devices that score a subset each."""
        return num_devices(self.rules.mesh)


def make_parts(
    apply_fn: ApplyFn,
    source: Source,
    config: CrestConfig,
    *,
    loss_fn: LossFn,
    embed_fn: EmbedFn | None,
    phase: PhaseFn,
) -> Parts:
    """Check the data against the settings and compile what a run needs; arguments as of ``crest``."""
    _checks.apply_function(apply_fn)
    _checks.require(
        isinstance(config, CrestConfig),
        f"config is a {type(config).__name__} but must be a CrestConfig; pass "
        "CrestConfig.recommended(steps=...).",
    )
    classes, count, own = classes_in(source), len(source), config.region
    sizes = {"subset_size": config.subset_size} | (
        {} if own is None else {"probe_size": own.probe_size}
    )
    for name, size in sizes.items():
        _checks.require(
            size <= count,
            f"{name} is {size} but the data hold {count} examples; lower {name}, or batch_size, of "
            "which it is a multiple unless you set it.",
        )
    loss_fn = fitting(loss_fn, source)
    if embed_fn is None:
        kind = getattr(getattr(source, "labels", None), "dtype", None)
        if kind is not None and is_cross_entropy(loss_fn):
            class_numbers(kind)
        embeddings = default_gradients if config.embedding == "last_layer" else logit_gradients
        embed_fn = embeddings(apply_fn, loss_fn)
    mesh = getattr(source, "mesh", None)
    rules = make_rules(
        classes if config.stratified else one_class(count),
        largest_draw=max(sizes.values()),
        exclusion=config.exclusion,
        capacity=most_observations(config),
        skip_nonfinite=config.nonfinite == "skip",
        mesh=mesh,
    )
    problem = Problem(config, apply_fn, loss_fn, embed_fn, mesh)
    compiled = compile_for(problem)
    passes = getattr(embed_fn, "backward_passes", 0)
    codes = rules.strata.classes
    if not config.stratified:
        codes = place(jnp.asarray(compact(classes.codes, classes.number)), mesh)
    share = float(np.bincount(classes.codes).max() / count)
    given = rules, codes, classes.number, share
    return Parts(problem, source, *given, compiled, Lookahead(source), phase, passes)


def most_observations(config: CrestConfig) -> int:
    """Return how many observations the longest exclusion window holds.

    With regions a window ends at a check, up to an interval late. At worst every region ends at its
    first check, a step after it began; a region has as many coresets as its first interval asks for.
    Those of one region may come before their steps.

    Example:
      >>> config = CrestConfig.recommended(steps=1000)
      >>> most_observations(config) == 512 * (100 + 1)
      True
    """
    if config.exclusion is None:
        return 1
    own, steps = config.region, config.exclusion.window
    subsets = steps + 1
    if own is not None:
        each_step = max(1, min(math.ceil(own.coresets_per_interval), own.max_coresets))
        tries = TRIES if config.nonfinite == "skip" else 1
        subsets = tries * (each_step * (steps + own.max_interval) + own.max_coresets)
    return subsets * max(config.batch_size, config.subset_size)
