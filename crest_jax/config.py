"""The settings of CREST."""

import dataclasses
import re
from typing import Literal, get_args

from crest_jax import _checks
from crest_jax.curvature import Smoothing

Exhausted = Literal["current", "anchor", "reanchor"]
Nonfinite = Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True)
class CrestConfig:
    """Settings of CREST.

    Raises:
      ValueError: at construction, when a value breaks its rule.

    Example:
      >>> CrestConfig(batch_size=32, subset_size=128).subset_size
      128
    """

    batch_size: int = 128
    """m, examples in a mini-batch coreset."""
    subset_size: int = 256
    """r, examples in the random subset that a coreset is selected from."""
    scoring_chunk: int | None = None
    """Examples of a subset scored at once. None: 128 on a CPU, where they fit its caches, else all."""
    max_coresets: int = 16
    """Largest number P of coresets selected at once."""
    coresets_per_interval: float = 1.0
    """b: a region begins with P = b * T1 coresets, T1 being the steps until its first check."""
    interval_multiplier: float = 8.0
    """h0: T1 = ceil(h0 * |H_0| / |H_l|)."""
    max_interval: int = 16
    """Longest T1, in steps."""
    reference_step: int | None = None
    """|H_0| is the curvature's norm at the first region from this step on: the end of warm-up. None:
    the first region of all (the training script sets the end of its warm-up)."""
    tau: float = 0.1
    """A region ends when the relative error rho of its quadratic model exceeds tau."""
    probe_size: int = 256
    """Examples on which the loss is measured for rho."""
    curvature_coresets: int = 1
    """Mini-batch coresets on which the gradient and the Hessian's diagonal are taken; a region begins
    with at least as many."""
    hutchinson_probes: int = 1
    """Random vectors for the Hessian's diagonal."""
    curvature_of: str | None = None
    """Regular expression: the Hessian's diagonal is taken of the parameters in whose path it is found
    (``"classifier|layer_5"``), and counts as 0 elsewhere, which saves most of its time and two of the
    four copies of the parameters that CREST holds. None: of all."""
    smoothing: Smoothing = "signed"
    """How gradient and curvature are smoothed over regions: none, signed, or as in the paper."""
    beta1: float = 0.9
    """Decay of the gradient's mean (smoothing "paper")."""
    beta2: float | None = None
    """Decay of the curvature's mean; None: 0.9 for "signed", 0.999 for "paper"."""
    exclude_below: float = 0.02
    """alpha: an example whose loss stays below it for a window is excluded; 0 excludes none. The
    paper's 0.1 suits long training; in runs of few passes it takes examples out too early."""
    exclude_window: int = 100
    """T2, optimizer steps in a window. Of a very long one the newest 16 million sightings count."""
    exclude_for: int | None = 4
    """Windows that an excluded example stays out before it returns, at most 127. None: until its class
    runs dry, as in the paper; long runs then forget what they no longer see."""
    exclude_keep: float = 0.25
    """Share of the excluded examples that stays in play, drawn anew in every pass, each with weight one
    over the share: together they weigh in the mean gradient what all excluded ones would, less 1 to 3 %
    (see ``exclusion.stands_for``). 0 leaves all out, as in the paper; trainings of many passes suffer
    from that."""
    exclude_until: int | None = None
    """Step from which on all examples are in play: in trainings of many passes, leaving out what is
    learned can overfit the rest once the learning rate has dropped. None: exclusion to the end. (The
    training script ends it at the first drop in runs of more than 10 passes, unless exclude_keep is 0,
    the paper's way.)"""
    exhausted: Exhausted = "current"
    """When a region outlives its coresets: select more at the current or at the anchor's parameters,
    or begin a new region."""
    weighted: bool = True
    """Weight each pick by the examples it stands for; False gives every pick weight 1."""
    reuse: int = 1
    """Steps that each coreset serves, in turn with the others selected with it."""
    select_from: int = 0
    """Step from which on coresets are selected. Before it mini-batches are random, stratified by class,
    out of the examples in play, and nothing is scored: noise early in training is forgotten."""
    select_until: int | None = None
    """Step from which on mini-batches are random again: once the learning rate has dropped, less
    variance buys nothing. None: coresets to the end, as in the paper. (The training script selects
    from 35 % to 50 % of the steps, up to the first drop.)"""
    reshuffle: bool = False
    """Cut the shuffled union of the coresets selected together into mini-batches, as the public code
    does (an ablation: a mini-batch is no coreset then)."""
    nonfinite: Nonfinite = "stop"
    """What a NaN or infinite loss, embedding or curvature does: "stop" raises. "skip" begins a region
    whose loss or curvature is bad anew with other examples, and raises when three in a row are; one in
    which a scored example was bad begins anew at its next check, until when a bad embedding counts as
    zero. (With "skip" the training script also leaves out each step whose gradient is bad, and stops at
    the sixth in a row.)"""

    def __post_init__(self) -> None:
        """Check every field."""
        for name in (
            "batch_size", "subset_size", "max_coresets", "max_interval", "probe_size",
            "curvature_coresets", "hutchinson_probes", "exclude_window", "reuse",
        ):  # fmt: skip
            _checks.positive_int(name, getattr(self, name))
        if self.scoring_chunk is not None:
            _checks.positive_int("scoring_chunk", self.scoring_chunk)
        _checks.require(
            self.batch_size <= self.subset_size,
            f"batch_size is {self.batch_size} but must not exceed subset_size {self.subset_size}, "
            "since a coreset is selected out of a subset; raise subset_size.",
        )
        _checks.require(
            self.curvature_coresets <= self.max_coresets,
            f"curvature_coresets is {self.curvature_coresets} but must not exceed max_coresets "
            f"{self.max_coresets}; lower it or raise max_coresets.",
        )
        _checks.require(
            self.reference_step is None
            or (isinstance(self.reference_step, int) and self.reference_step >= 0),
            f"reference_step is {self.reference_step!r} but must be None or an integer of at least 0; "
            "pass the last step of the warm-up.",
        )
        _checks.require(
            isinstance(self.select_from, int) and self.select_from >= 0,
            f"select_from is {self.select_from!r} but must be an integer of at least 0; 0 selects from "
            "the first step on.",
        )
        _checks.require(
            self.select_until is None
            or (isinstance(self.select_until, int) and self.select_until > self.select_from),
            f"select_until is {self.select_until!r} but must be None or an integer above select_from, "
            f"{self.select_from}; pass the step of the learning rate's first drop.",
        )
        for name in ("coresets_per_interval", "interval_multiplier", "tau"):
            _checks.in_range(name, getattr(self, name), 0.0, 1e6, open_low=True)
        _checks.in_range("beta1", self.beta1, 0.0, 0.999999)
        if self.beta2 is not None:
            _checks.in_range("beta2", self.beta2, 0.0, 0.999999)
        _checks.in_range("exclude_below", self.exclude_below, 0.0, 1e6)
        _checks.window_count("exclude_for", self.exclude_for)
        _checks.in_range("exclude_keep", self.exclude_keep, 0.0, 1.0)
        if self.exclude_until is not None:
            _checks.positive_int("exclude_until", self.exclude_until)
        try:
            re.compile(self.curvature_of or "")
        except re.error as error:
            raise ValueError(
                f"curvature_of is {self.curvature_of!r} but must be a regular expression ({error}); "
                "correct it."
            ) from error
        for name, options in (
            ("smoothing", get_args(Smoothing)),
            ("exhausted", get_args(Exhausted)),
            ("nonfinite", get_args(Nonfinite)),
        ):
            _checks.one_of(name, getattr(self, name), options)
