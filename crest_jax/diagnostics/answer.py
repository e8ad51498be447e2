"""What a pilot found, and what it says."""

import math
from typing import NamedTuple

import numpy as np

# Root mean square of the logarithm of predicted over measured worth, in the first five settings of
# experiments/results/pilot_check: gradients of some early steps say so much about a whole training.
MODEL_ERROR = 0.3
# Effective passes above which CREST was worth less than a larger batch in all four settings there whose
# outcome is clear (experiments/results/pilot_check); chosen on these.
MOST_PASSES = 20
VERDICTS = ("Yes", "Probably yes", "Too close to call", "Probably no", "No")
MIDDLE_HALF = 0.674 / 1.96  # how far the middle half of an interval reaches, of its 95 %


class Pilot(NamedTuple):
    """What a pilot found; sizes are in mini-batches of m. ``print`` it to read it in words.

    Attributes:
      steps: of the training asked about.
      trained: steps after which the last gradients were compared.
      compared: steps at which they were.
      equivalent_batch: size of the stratified batch whose gradients err as little as a coreset's, at
        most that of all data.
      equivalent_batch_interval: its 95 % interval, by a bootstrap over steps.
      time_ratio: seconds of a training with CREST over one on stratified batches, for as many steps.
      larger_batch: size of the stratified batches whose steps take as long as CREST's.
      noise: variance of the gradient of a stratified mini-batch, over the squared length of the
        gradient of all data. Far below 1 noise limits nothing, and neither coresets nor a larger batch
        gain anything.
      bias: length of the coresets' bias, over that of the gradient of all data.
      evenness: of the gradients' lengths, at each point; see ``CrestConfig.pause_above``. Empty with
        regions.
      paused: share of the points at which it was above that. CREST takes stratified batches there,
        which are worth one and take no longer.
      passes: of the training over the data.
      batch_size: m, examples in a mini-batch.
    """

    steps: int
    trained: int
    compared: int
    equivalent_batch: float
    equivalent_batch_interval: tuple[float, float]
    time_ratio: float
    larger_batch: float
    noise: float
    bias: float
    evenness: tuple[float, ...]
    paused: float
    passes: float
    batch_size: int

    @property
    def worth(self) -> float:
        """The equivalent batch over the size that takes as long."""
        return self.equivalent_batch / self.larger_batch

    @property
    def worth_interval(self) -> tuple[float, float]:
        """Its 95 % interval: of the draws of gradients, and of what they leave open about training."""
        own, (low, high) = math.log(self.equivalent_batch), self.equivalent_batch_interval
        model = 1.96 * MODEL_ERROR * (1 - self.paused)
        below, above = (math.hypot(math.log(end) - own, model) for end in (low, high))
        return self.worth * math.exp(-below), self.worth * math.exp(above)

    @property
    def pays(self) -> bool:
        """Whether coresets are worth more than a larger batch that takes as long.

        In too many effective passes they are not, whatever the gradients say.
        """
        return self.worth > 1 and self.effective_passes <= MOST_PASSES

    @property
    def verdict(self) -> str:
        """One of "Yes", "Probably yes", "Too close to call", "Probably no" and "No".

        It is "probably" where the interval of the worth holds 1, and too close to call where even the
        middle half of that interval does. In too many effective passes it is "No" where the interval
        lies below 1, and else "Probably no".
        """
        low, high = self.worth_interval
        answer = "yes" if self.pays else "no"
        if self.paused == 1 or high < 1 or (low > 1 and self.pays):
            return answer.capitalize()
        end = high if self.worth < 1 else low  # the one beyond 1
        close = abs(math.log(self.worth)) < MIDDLE_HALF * abs(math.log(end / self.worth))
        if close and self.effective_passes <= MOST_PASSES:
            return "Too close to call"
        return f"Probably {answer}"

    @property
    def effective_passes(self) -> float:
        """Passes over the examples that carry the gradient, ``n`` times the mean evenness.

        That is Kish's effective sample size of gradient lengths. A training of many such passes is
        limited by its data, and less noise does not help it.
        """
        return self.passes / (float(np.mean(self.evenness)) if self.evenness else 1.0)

    def __str__(self) -> str:
        """Say what was found, in some lines; the first words are the answer."""
        low, high = self.worth_interval
        size = self.batch_size
        own, (least, most) = self.equivalent_batch, self.equivalent_batch_interval
        lines = [
            f"{self.verdict}: the worth of CREST is {self.worth:.2f} [{low:.2f}, {high:.2f}]; "
            "above 1 it beats a larger batch that takes as long.",
            f"Gain: mini-batches of {size} that CREST chooses do as well as stratified ones of "
            f"{own * size:.0f} [{least * size:.0f}, {most * size:.0f}].",
            f"Cost: the training takes {self.time_ratio:.2f} times as long, as it does on "
            f"{_larger(self)}.",
            *_pauses(self),
            _advice(self),
        ]
        if low < 1 < high:
            lines.append("The interval holds 1: full runs may turn out either way.")
        noise = f"{self.noise:.2g} times the squared length of the full gradient"
        if self.noise < 0.5:
            noise += ", which is little: more steps should gain more than less noise does"
        lines.append(f"The variance of a stratified mini-batch is {noise}.")
        if self.trained < self.steps:
            lines.append(
                f"Gradients were compared in the first {self.trained} of {self.steps} steps; "
                "later ones may differ."
            )
        return "\n".join(lines)


def _pauses(found: Pilot) -> list[str]:
    """Say where CREST would pause, if anywhere."""
    if not found.paused:
        return []
    where = "all points" if found.paused == 1 else "one of two points"
    even = ", ".join(f"{value:.2f}" for value in found.evenness)
    return [
        f"At {where} gradients are so equally long (evenness {even}, of at most 1) that CREST "
        "pauses: it takes stratified mini-batches, which cost no more."
    ]


def _advice(found: Pilot) -> str:
    """Say what to take."""
    size, steps = found.batch_size, found.steps
    larger = f"{steps} steps on {_larger(found)}"
    if found.paused == 1:
        return "Take larger batches, or more steps, for more."
    if found.effective_passes > MOST_PASSES:
        return (
            f"The training makes {found.passes:.1f} passes over the data, "
            f"{found.effective_passes:.0f} over the examples that carry most of the gradient. "
            f"Above {MOST_PASSES} CREST seldom beats a larger batch that takes as long: take "
            f"stratified mini-batches, of {size} or larger."
        )
    if found.verdict == "Too close to call":
        return f"Take {larger} where that fits the memory, or CREST."
    if found.pays:
        return "Take CREST."
    longer = _about(found.time_ratio * steps)
    return f"Take {larger}, or about {longer} on ones of {size}, at the same rate."


def _larger(found: Pilot) -> str:
    """Name the batches whose steps take as long as CREST's."""
    rows = found.steps * found.batch_size / found.passes
    own = found.larger_batch * found.batch_size
    return "all data at once" if own >= rows else f"stratified mini-batches of about {_about(own)}"


def _about(value: float) -> str:
    """Write a number of two digits, for timed ones are not surer.

    >>> _about(533.7), _about(64.4), _about(1_830.0)
    ('530', '64', '1800')
    """
    return f"{float(f'{value:.2g}'):.0f}"
