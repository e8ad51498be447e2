"""The settings of CREST, and the two presets: what the paper did, and what we recommend."""

import dataclasses
import math
import re
from typing import Any, Literal, get_args

from crest_jax import _checks
from crest_jax.data.exclusion import ExclusionConfig
from crest_jax.gradients.curvature import Smoothing

Nonfinite = Literal["stop", "skip"]
Curvature = Literal["direction", "diagonal"]
Fitted = Literal["probe", "coresets"]
Embedding = Literal["last_layer", "logits"]
Picks = Literal["importance", "medoids"]
FIRST_DROP = 0.5  # of the learning rate, as a share of the steps, where ``recommended`` is told none
# Evenness of gradient lengths: after some 32 steps below 0.5 on MLPs, near 0.65 on a ResNet-8 that
# gains, near 0.88 on CIFAR-10, where nothing is gained; see experiments/results/evenness.
PAUSE_ABOVE = 0.75
MANY_PASSES = 10  # over the data: in more, exclusion ends where the learning rate first drops


@dataclasses.dataclass(frozen=True)
class RegionConfig:
    """Coresets that are kept for several steps, for as long as a quadratic model of the loss holds.

    Symbols are those of Yang, Kang and Mirzasoleiman (ICML 2023).

    Attributes:
      probe_size: examples on which the loss is measured for rho.
      tau: a region ends when the relative error rho of its quadratic model exceeds tau.
      interval_multiplier: h0; T1, the steps until the next check, is ``ceil(h0 * |H_0| / |H_l|)``.
      max_interval: longest T1, in steps.
      coresets_per_interval: b; a region begins with ``P = b * T1`` coresets.
      max_coresets: largest P.
      fitted_on: the examples that the quadratic model is fitted on: "probe", those on which the loss
        is measured, or "coresets", all P of the region, as in the paper. No step that follows trains on
        the former as such; on the latter it does, and the model is too optimistic.
      curvature: "direction": the Hessian along the way that the parameters have gone, one product at
        each check; "diagonal": the Hessian's diagonal at the anchor, as in the paper.
      smoothing: how gradient and curvature are smoothed over regions: "none", "signed" (a mean of the
        diagonals that keeps their sign) or "paper"; see ``gradients.curvature.smooth``.
      curvature_of: regular expression: the Hessian is taken of the parameters in whose path it is found
        (``"classifier|layer_5"``), and counts as 0 elsewhere, which saves most of a diagonal's time and
        the copies of the parameters that CREST holds for it. None: of all.
      reference_step: ``|H_0|`` is the curvature's norm at the first region from this step on: the end
        of the warm-up. None: the first region of all.

    Raises:
      ValueError: at construction, when a value breaks its rule.

    Example:
      >>> RegionConfig(tau=0.05).max_interval
      16
    """

    probe_size: int = 256
    tau: float = 0.1
    interval_multiplier: float = 8.0
    max_interval: int = 16
    coresets_per_interval: float = 1.0
    max_coresets: int = 16
    fitted_on: Fitted = "probe"
    curvature: Curvature = "direction"
    smoothing: Smoothing = "none"
    curvature_of: str | None = None
    reference_step: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("probe_size", "max_coresets", "max_interval"):
            _checks.positive_int(name, getattr(self, name))
        for name in ("coresets_per_interval", "interval_multiplier", "tau"):
            _checks.in_range(name, getattr(self, name), 0.0, 1e6, open_low=True)
        _check_step("reference_step", self.reference_step, "pass the last step of the warm-up")
        try:
            re.compile(self.curvature_of or "")
        except re.error as error:
            raise ValueError(
                f"curvature_of is {self.curvature_of!r} but must be a regular expression ({error}); "
                "correct it."
            ) from error
        _checks.one_of("fitted_on", self.fitted_on, get_args(Fitted))
        _checks.one_of("curvature", self.curvature, get_args(Curvature))
        _checks.one_of("smoothing", self.smoothing, get_args(Smoothing))


def _check_step(name: str, value: Any, remedy: str) -> None:
    _checks.require(
        value is None or (isinstance(value, int) and value >= 0),
        f"{name} is {value!r} but must be None or an integer of at least 0; {remedy}.",
    )


@dataclasses.dataclass(frozen=True)
class CrestConfig:
    """Settings of CREST: take ``CrestConfig.recommended`` or ``CrestConfig.paper`` and replace fields.

    Symbols are those of Yang, Kang and Mirzasoleiman (ICML 2023).

    Attributes:
      batch_size: m, examples in a mini-batch coreset.
      subset_size: r, examples in the random subset that a coreset is selected from.
      region: for how long coresets are kept. None: every coreset is chosen just before the step that
        trains on it.
      picks: how a coreset is chosen from its subset: "importance", drawn in proportion to the lengths
        of the gradients, which has hardly a bias (Katharopoulos and Fleuret, ICML 2018; see
        ``coresets.importance``), or "medoids", by facility location, as in the paper.
      embedding: what examples are compared by where ``crest`` is given no ``embed_fn``: "last_layer",
        the gradient with respect to the last layer's weights, where the model is one of ``from_linen``
        or ``from_nnx`` that ends in a linear layer, and with respect to the logits elsewhere; or
        "logits", with respect to these.
      select_from: step from which on coresets are selected. Before it mini-batches are random,
        stratified by class, out of the active examples, and nothing is scored. None: from the first
        step on.
      select_until: step from which on mini-batches are random again. None: coresets to the end.
      stratified: whether random subsets, and random mini-batches, have each class in its share; False
        draws them from all classes as one, as in the paper.
      by_class: whether medoids are chosen in each class apart even where that leaves fewer than two a
        class, as in the paper's public code. False: all examples of a subset are then one class, or
        classes are drawn where there are fewer picks than classes.
      exclusion: what becomes of learned examples; None: all stay active.
      pause_above: evenness of the gradients' lengths, ``(mean length)^2 / mean length^2``, above which
        no coresets are chosen for 32 steps, and mini-batches are random as outside the span: where all
        gradients are about equally long, no choice pays. It is looked at every 32 steps, of the subset
        scored last. 1: never; so it must be with regions.
      nonfinite: what a NaN or infinite loss, embedding or curvature does: "stop" raises at the next
        check, or within 32 steps without regions. With "skip" a bad embedding counts as zero; a region
        whose loss or curvature is bad begins anew with other examples, which raises when three in a row
        are; and one in which a scored example was bad begins anew at its next check.

    Raises:
      ValueError: at construction, when a value breaks its rule.

    Example:
      >>> config = CrestConfig.recommended(steps=1000, batch_size=64)
      >>> dataclasses.replace(config, subset_size=128).subset_size
      128
    """

    batch_size: int
    subset_size: int
    region: RegionConfig | None
    picks: Picks
    embedding: Embedding
    select_from: int | None
    select_until: int | None
    stratified: bool
    by_class: bool
    exclusion: ExclusionConfig | None
    pause_above: float
    nonfinite: Nonfinite

    @classmethod
    def recommended(
        cls,
        *,
        steps: int,
        first_drop: int | None = None,
        batch_size: int = 128,
        num_examples: int | None = None,
        batch_norm: bool = False,
    ) -> "CrestConfig":
        """What we recommend: coresets chosen just before every step up to the first drop.

        They are drawn by gradient length, out of four mini-batches. Where the network normalises by the
        statistics of a mini-batch, whose noise hides what such a draw gains, they are medoids, out of
        two. From the first drop of the learning rate on less variance buys little: mini-batches are
        random, and also while gradients are about equally long. Learned examples are kept in part.

        Args:
          steps: optimizer steps of the training.
          first_drop: step at which the learning rate first drops; None: half of the steps, which is
            also right for a cosine.
          batch_size: examples in a mini-batch.
          num_examples: examples of the data; in more than ten passes over them exclusion ends at the
            first drop. None: to the end.
          batch_norm: whether the network has BatchNorm.

        Example:
          >>> config = CrestConfig.recommended(steps=1000)
          >>> config.select_from, config.select_until, config.subset_size
          (None, 500, 512)
        """
        _checks.positive_int("steps", steps)
        _checks.positive_int("batch_size", batch_size)
        drop = round(FIRST_DROP * steps) if first_drop is None else first_drop
        many = num_examples is not None and steps * batch_size > MANY_PASSES * num_examples
        subset = (2 if batch_norm else 4) * batch_size
        if num_examples is not None:
            subset = max(batch_size, min(subset, num_examples))
        return cls(
            batch_size=batch_size,
            subset_size=subset,
            region=None,
            picks="medoids" if batch_norm else "importance",
            embedding="last_layer",
            select_from=None,
            select_until=None if drop >= steps else max(drop, 1),
            stratified=True,
            by_class=False,
            exclusion=ExclusionConfig.recommended(until=max(1, drop) if many else None),
            pause_above=PAUSE_ABOVE,
            nonfinite="stop",
        )

    @classmethod
    def paper(
        cls, *, num_examples: int, steps: int, batch_size: int = 128, warmup: int | None = None
    ) -> "CrestConfig":
        """What the paper did (Yang, Kang and Mirzasoleiman, ICML 2023, Section 5 and its public code).

        From there: random subsets of 1 % of the data, a coreset of medoids from each, by facility
        location on gradients with respect to the logits, gradient and curvature on all P coresets of a
        region with the moments of AdaHessian, h0 = 1, b = 5, tau = 0.1, exclusion for good below a loss
        of alpha = 0.1, and coresets at all steps. The network has plain BatchNorm.

        The paper leaves open, and our choice is:

        * Subsets are drawn without regard to classes, in passes over the examples that are left, each
          once in a pass; medoids are chosen in each class apart, in proportion to its examples in the
          subset, by the largest remainder, at least one where there are as many picks as classes (the
          public code rounds every class up, to mini-batches of more than m).
        * A coreset is a mini-batch, trained on whole, with the number of examples that a medoid stands
          for as its weight (the public code joins, shuffles and cuts the coresets anew).
        * The loss of the check is measured on one more random subset, before and after in evaluation
          mode; the curvature is taken with one Rademacher vector.
        * T1 and P end at the mini-batches of a tenth of the data (as in the public code, an epoch of
          the budget), at least 16. Where a region outlives its coresets, others are added at the
          parameters of that moment.
        * The window of exclusion is a tenth of the steps (the public code: 20 of 200 epochs); ``|H_0|``
          is taken at the end of the warm-up, a tenth of the steps.
        * A subset has at least the examples of a mini-batch, where 1 % of the data are fewer.

        Args:
          num_examples: n, examples of the data.
          steps: optimizer steps of the training.
          batch_size: examples in a mini-batch.
          warmup: steps of the warm-up; None: a tenth of the steps.

        Example:
          >>> config = CrestConfig.paper(num_examples=50_000, steps=7_820)
          >>> config.subset_size, config.region.coresets_per_interval, config.select_until
          (500, 5.0, None)
        """
        _checks.positive_int("num_examples", num_examples)
        _checks.positive_int("steps", steps)
        _checks.positive_int("batch_size", batch_size)
        subset = max(batch_size, round(0.01 * num_examples))
        longest = max(16, math.ceil(0.1 * num_examples / batch_size))
        return cls(
            batch_size=batch_size,
            subset_size=subset,
            region=RegionConfig(
                probe_size=subset,
                tau=0.1,
                interval_multiplier=1.0,
                max_interval=longest,
                coresets_per_interval=5.0,
                max_coresets=longest,
                fitted_on="coresets",
                curvature="diagonal",
                smoothing="paper",
                reference_step=round(0.1 * steps) if warmup is None else warmup,
            ),
            picks="medoids",
            embedding="logits",
            select_from=None,
            select_until=None,
            stratified=False,
            by_class=True,
            exclusion=ExclusionConfig.paper(window=max(1, round(0.1 * steps))),
            pause_above=1.0,
            nonfinite="stop",
        )

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch_size", "subset_size"):
            _checks.positive_int(name, getattr(self, name))
        _checks.require(
            self.batch_size <= self.subset_size,
            f"batch_size is {self.batch_size} but must not exceed subset_size {self.subset_size}, "
            "since a coreset is selected out of a subset; raise subset_size.",
        )
        _checks.require(
            self.region is None or isinstance(self.region, RegionConfig),
            f"region is {_checks.brief(self.region)} but must be a RegionConfig or None; None chooses "
            "every coreset at its step.",
        )
        _check_step("select_from", self.select_from, "None selects from the first step on")
        _checks.require(
            self.select_until is None
            or (isinstance(self.select_until, int) and self.select_until > (self.select_from or 0)),
            f"select_until is {self.select_until!r} but must be None or an integer above select_from, "
            f"{self.select_from}; pass the step of the learning rate's first drop.",
        )
        _checks.require(
            self.exclusion is None or isinstance(self.exclusion, ExclusionConfig),
            f"exclusion is {_checks.brief(self.exclusion)} but must be an ExclusionConfig or None; "
            "ExclusionConfig.recommended() is usual.",
        )
        _checks.in_range("pause_above", self.pause_above, 0.0, 1.0, open_low=True)
        _checks.require(
            self.region is None or self.pause_above == 1,
            f"pause_above is {self.pause_above} but must be 1 with regions, in which coresets are not "
            "chosen step by step; pass pause_above=1.",
        )
        for name in ("stratified", "by_class"):
            value = getattr(self, name)
            _checks.require(
                isinstance(value, bool),
                f"{name} is {_checks.brief(value)} but must be True or False; pass one.",
            )
        _checks.require(
            not (self.by_class and self.picks == "importance"),
            "by_class is True but picks is 'importance', which heeds no classes; leave by_class False, "
            "or choose medoids.",
        )
        _checks.one_of("picks", self.picks, get_args(Picks))
        _checks.one_of("embedding", self.embedding, get_args(Embedding))
        _checks.one_of("nonfinite", self.nonfinite, get_args(Nonfinite))

    @property
    def most_coresets(self) -> int:
        """Coresets that are held at most."""
        return 1 if self.region is None else self.region.max_coresets

    def selects(self, step: int) -> bool:
        """Return whether coresets are selected at a step.

        Example:
          >>> CrestConfig.recommended(steps=1000).selects(400)
          True
        """
        return (self.select_from or 0) <= step < (self.select_until or math.inf)
