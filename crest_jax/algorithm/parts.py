"""What never changes in a run of CREST, checked once."""

import math
from typing import NamedTuple

from crest_jax import _checks
from crest_jax.algorithm.compiled import Compiled, Problem, compile_for
from crest_jax.algorithm.config import CrestConfig
from crest_jax.algorithm.nonfinite import TRIES
from crest_jax.data.classes import classes_in
from crest_jax.data.devices import num_devices
from crest_jax.data.pool import PoolRules, make_rules
from crest_jax.data.prefetch import Lookahead
from crest_jax.gradients.embeddings import logit_gradients
from crest_jax.gradients.losses import fitting
from crest_jax.types import ApplyFn, EmbedFn, LossFn, ModelState, Params, PhaseFn, Source

MOST_OBSERVATIONS = 2**24  # held of an exclusion window, 64 MB


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
      config: settings.
      source: the data.
      rules: which examples may be drawn.
      compiled: the compiled functions.
      ahead: fetches the next examples.
      phase: runs "selection", "curvature" and "check".
      backward_passes: those of the embedding, for each example.
    """

    config: CrestConfig
    source: Source
    rules: PoolRules
    compiled: Compiled
    ahead: Lookahead
    phase: PhaseFn
    backward_passes: int

    @property
    def num_classes(self) -> int:
        """c, classes that occur."""
        return self.rules.strata.sizes.shape[0]

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
    count, classes = len(source), classes_in(source)
    for name in ("subset_size", "probe_size"):
        _checks.require(
            getattr(config, name) <= count,
            f"{name} is {getattr(config, name)} but the data hold {count} examples; lower {name}.",
        )
    embed_fn = embed_fn or logit_gradients(apply_fn, loss_fn)
    mesh = getattr(source, "mesh", None)
    loss_fn = fitting(loss_fn, source)
    rules = make_rules(
        classes,
        largest_draw=max(config.subset_size, config.probe_size),
        exclusion=config.exclusion,
        capacity=most_observations(config),
        skip_nonfinite=config.nonfinite == "skip",
        mesh=mesh,
    )
    compiled = compile_for(Problem(config, apply_fn, loss_fn, embed_fn, mesh))
    passes = getattr(embed_fn, "backward_passes", 0)
    return Parts(config, source, rules, compiled, Lookahead(source), phase, passes)


def most_observations(config: CrestConfig) -> int:
    """Return how many observations the longest exclusion window holds.

    A window ends at a check, up to an interval late. At worst every region ends at its first check, a
    step after it began; a region has as many coresets as its first interval asks for. Those of one
    region may come before their steps.

    Example:
      >>> config = CrestConfig.recommended(steps=1000)
      >>> most_observations(config) == 256 * (100 + 16 + 16)
      True
    """
    if config.exclusion is None:
        return 1
    each_step = max(1, min(math.ceil(config.coresets_per_interval), config.max_coresets))
    tries = TRIES if config.nonfinite == "skip" else 1
    steps = config.exclusion.window + config.max_interval
    subsets = tries * (each_step * steps + config.max_coresets)
    return min(subsets * max(config.batch_size, config.subset_size), MOST_OBSERVATIONS)
