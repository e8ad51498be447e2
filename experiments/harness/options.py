"""The groups of options that a training run has."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

from crest_jax.algorithm.config import Curvature, Fitted, Picks
from crest_jax.gradients.curvature import Smoothing
from experiments.data import OwnOptions
from experiments.data.dataset import Fit
from experiments.harness.cli import UserError
from experiments.models.networks import Norm

DROPS = (0.5, 0.75)  # shares of the steps after which the schedule "step" drops the rate


def require(name: str, value: float, sound: bool, rule: str, remedy: str) -> None:
    """Raise ``UserError`` unless the value of an option is finite and sound."""
    if not (math.isfinite(value) and sound):
        raise UserError(f"--{name} is {value} but must {rule}; {remedy}.")


def require_positive(group: str, config: Any, *names: str) -> None:
    """Raise ``UserError`` unless the integers of a group of options are positive or None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(
                f"--{group}{name.replace('_', '-')} is {value} but must be at least 1; pass a positive "
                "integer."
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples."""

    dir: Path | None = None
    """Folder or file of the data; None: where the system's package or the preparation puts them. Your
    own need it. "images": .jpg, .png and .webp files in train/CLASS and test/CLASS, or in CLASS alone.
    "idx": files named as those of MNIST. "table": a .csv file with a header, a folder with train.csv
    and test.csv, or an .npz file of inputs and labels. Without test rows one in five of each class
    becomes one, by a fixed seed."""
    augment: bool | None = None
    """Shift and mirror training images at random; None: as is usual for the data, colour sets only."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Examples that the evaluations take; tune on validation only. Where your own data have none, one
    training row in ten of each class becomes one, by a fixed seed."""
    image_size: tuple[int, ...] | None = None
    """Height and width of all images of --dataset images, or one number for both; None: as they are,
    all the same."""
    image_fit: Fit | None = None
    """How images come to --data.image-size: "crop" (None) scales the shorter side and cuts the middle
    out, "stretch" scales both sides."""
    label: str | None = None
    """Column of the class in a .csv file; None: "label"."""
    ignore: tuple[str, ...] = ()
    """Columns of a .csv file that are no features, such as a number of the row."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        size = self.image_size
        if size is not None and (len(size) not in (1, 2) or min(size) < 1):
            raise UserError(
                f"--data.image-size is {' '.join(map(str, size)) or 'empty'} but must be one or two "
                "positive integers, height and width; pass 64, say."
            )
        if self.image_fit is not None and size is None:
            raise UserError(
                f"--data.image-fit is {self.image_fit} but says how images come to --data.image-size, "
                "which is not given; give both or none."
            )
        if self.own().label in self.ignore:
            raise UserError(
                f"--data.ignore names {self.own().label}, the column of the classes; drop it there, or "
                "name another --data.label."
            )

    def own(self) -> OwnOptions:
        """Return how the user's own data are read."""
        size = None if self.image_size is None else (self.image_size[0], self.image_size[-1])
        return OwnOptions(
            image_size=size,
            image_fit=self.image_fit or "crop",
            label="label" if self.label is None else self.label,
            ignore=self.ignore,
            validation=self.evaluate_on == "validation",
        )


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network for images."""

    width: int | None = None
    """Width of the network's first stage (resnet) or of its hidden layers (mlp); None: the usual."""
    norm: Norm | None = None
    """Normalisation of a residual network: BatchNorm that heeds the weights of examples, BatchNorm that
    does not, or GroupNorm, which has no statistics of mini-batches. None: the first, with --preset
    paper the second."""
    imagenet_stem: bool = False
    """Begin a residual network as on ImageNet: a 7x7 convolution of stride 2 and a pooling."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require_positive("network.", self, "width")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum (sgd)."""
    nesterov: bool = False
    """Nesterov's form of the momentum (sgd)."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: Literal["step", "cosine", "linear"] = "step"
    """Decay of the rate: tenfold drops at half and three quarters of the steps, a cosine, or linear."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises linearly."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        rate, decay, name = self.learning_rate, self.weight_decay, "optim."
        require(f"{name}learning-rate", rate, rate > 0, "be finite and above 0", "0.1 is usual")
        sound = 0 <= self.momentum < 1
        require(f"{name}momentum", self.momentum, sound, "lie in [0, 1)", "0.9 is usual")
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "--optim.momentum is 0.0 but must be above 0 with --optim.nesterov, a form of the "
                "momentum; pass 0.9, say, or leave --optim.nesterov out."
            )
        require(f"{name}weight-decay", decay, decay >= 0, "be finite and at least 0", "0.0001 is usual")
        require(
            f"{name}warmup", self.warmup, 0 <= self.warmup < DROPS[0],
            "lie in [0, 0.5), before the first drop of the rate", "0.1 is usual",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExclusionOptions:
    """What becomes of learned examples; None: as the preset says."""

    threshold: float | None = None
    """alpha: an example whose loss stays below it for a window is excluded."""
    window: int | None = None
    """T2, steps of a window."""
    cooldown: int | Literal["never"] | None = None
    """Windows that an excluded example stays out; never: until its class runs dry."""
    keep_fraction: float | None = None
    """Share of the excluded examples that is drawn all the same, with weight one over the share."""
    until: int | None = None
    """Step from which on all examples are active."""
    relative: bool | None = None
    """Take the threshold in units of the loss at the start."""


@dataclasses.dataclass(frozen=True)
class RegionOptions:
    """For how long coresets are kept; None: as the preset says."""

    probe_size: int | None = None
    """Examples on which the loss is measured for rho."""
    tau: float | None = None
    """A region ends when the relative error rho of its quadratic model exceeds tau."""
    interval_multiplier: float | None = None
    """h0: T1 = ceil(h0 * |H_0| / |H_l|)."""
    max_interval: int | None = None
    """Longest T1, in steps."""
    coresets_per_interval: float | None = None
    """b: a region begins with P = b * T1 coresets."""
    max_coresets: int | None = None
    """Largest P."""
    fitted_on: Fitted | None = None
    """Examples that the quadratic model is fitted on."""
    curvature: Curvature | None = None
    """The Hessian along the way gone, at the check, or its diagonal at the anchor."""
    smoothing: Smoothing | None = None
    """How gradient and curvature are smoothed over regions."""
    curvature_of: str | None = None
    """Regular expression of the parameters that the curvature is taken of."""


@dataclasses.dataclass(frozen=True)
class CrestOptions:
    """Settings of CREST, over those of --preset; None: as the preset says."""

    subset_size: int | None = None
    """r, examples in the random subset that a coreset is selected from."""
    picks: Picks | None = None
    """How a coreset is chosen from its subset: drawn by gradient length, or by facility location."""
    regions: bool | None = None
    """True keeps coresets for as long as a quadratic model of the loss holds; False chooses each just
    before its step."""
    region: RegionOptions = dataclasses.field(default_factory=RegionOptions)
    """For how long coresets are kept, with --crest.regions."""
    select_span: tuple[float, float] | None = None
    """Shares of the steps between which coresets are selected; 0 1 is throughout."""
    stratified: bool | None = None
    """Whether random subsets have each class in its share."""
    by_class: bool | None = None
    """Whether medoids are chosen in each class apart even where that leaves fewer than two a class."""
    embedding: Literal["logits", "last_layer", "sketch"] | None = None
    """What examples are compared by: the gradient with respect to the logits, to the last layer, or to
    all parameters, randomly projected to 64 numbers (an ablation: one backward pass an example)."""
    pause_above: float | None = None
    """Evenness of the gradients' lengths above which no coresets are chosen for a while; 1: never."""
    exclude: bool | None = None
    """False leaves all examples active."""
    exclusion: ExclusionOptions = dataclasses.field(default_factory=ExclusionOptions)
    """What becomes of learned examples."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.select_span is not None:
            low, high = self.select_span
            if not 0 <= low < high <= 1:
                raise UserError(
                    f"--crest.select-span is {low} {high} but must be two rising shares in [0, 1]; 0 1 "
                    "selects throughout."
                )
        if self.regions is False and self.region != RegionOptions():
            raise UserError(
                "--crest.regions is False but --crest.region is given too; leave one of them out."
            )
        if self.exclude is False and self.exclusion != ExclusionOptions():
            raise UserError(
                "--crest.exclude is False but --crest.exclusion is given too; leave one of them out."
            )


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Options of single baselines."""

    reselections: int = 10
    """Times that craig, gradmatch and glister choose their subset, evenly spaced over the run."""
    pool_factor: int = 2
    """top_loss draws so many times the mini-batch and keeps the highest losses."""
    scoring_networks: int = 1
    """Networks that el2n trains, each for the budget, to score the examples."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require_positive("baselines.", self, "reselections", "pool_factor", "scoring_networks")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run writes, and when it stops."""

    evaluations: int = 10
    """Evaluations during the run, evenly spaced; the last one is after the last step."""
    checkpoints: int = 10
    """Checkpoints during the run, evenly spaced."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does: "stop" ends the run; "skip" leaves the step out,
    and stops at the sixth in a row."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require_positive("run.", self, "evaluations", "checkpoints")


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Where a run takes place; changes no result, or nothing but the order of sums."""

    devices: int = 1
    """Devices that share the work of every step; 0: all. With several processes all are used."""
    shard: bool | None = None
    """Put each training image on one device only. None: where a copy of all would take more than a
    quarter of a device's memory."""
    cluster: bool = False
    """One process of several, which the environment names (SLURM, Kubernetes, TPU pods)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, without --machine.cluster."""
    processes: int | None = None
    """Number of processes, without --machine.cluster."""
    process: int | None = None
    """Which of them this one is, from 0."""
    step_timeout: float | None = None
    """Seconds after which a run that finished no step ends by itself, with a sentence; compilation
    counts. None: 600 with several processes, else it waits."""
    scan: int | None = None
    """Most steps in one program. None: 32 on a GPU or TPU, 1 on a CPU, where convolutions in loops take
    longer."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, for the next run."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.devices < 0:
            raise UserError(
                f"--machine.devices is {self.devices} but must be at least 0; 0 means all there are."
            )
        if self.step_timeout is not None:
            require(
                "machine.step-timeout", self.step_timeout, self.step_timeout > 0,
                "be finite and positive", "600 is usual, or leave it out",
            )  # fmt: skip
        require_positive("machine.", self, "processes")
        require_positive("machine.", self, "scan")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Runs on text."""

    checkpoint: Path | None = None
    """Folder of the pretrained encoder in the Hugging Face layout; "minilm" finds its package."""
    max_tokens: int = 128
    """Longer texts are cut to so many tokens."""
    pooling: Literal["cls", "mean"] | None = None
    """Summary of a text that the classifier reads; None: "mean" for minilm, else "cls"."""
    dropout: float | None = None
    """Dropout everywhere in the encoder; None: as its config.json says."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the encoder's activations; parameters stay float32."""
    remat: bool = False
    """Compute each layer's activations again in the backward pass: less memory on an accelerator (XLA
    on a CPU saves next to nothing), for more time."""
    train_file: Path | None = None
    """Training texts of --dataset texts, .csv or .jsonl."""
    test_file: Path | None = None
    """Test texts; None splits them off the training file."""
    columns: tuple[str, ...] = ("text",)
    """Column of the text, or the two columns of a pair."""
    label_column: str = "label"
    """Column of the label."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any work."""
        tokens, dropout = self.max_tokens, self.dropout
        require("text.max-tokens", tokens, tokens >= 8, "be at least 8", "128 is usual")
        if dropout is not None:
            require("text.dropout", dropout, 0 <= dropout < 1, "lie in [0, 1)", "0.1 is usual")


def changed(group: Any, dash: str = "-") -> list[str]:
    """Return the fields of a group of options that differ from their defaults, as on the command line.

    >>> changed(DataConfig(evaluate_on="validation"))
    ['evaluate-on']
    """
    plain = type(group)()
    names = [field.name for field in dataclasses.fields(group)]
    found = [name for name in names if getattr(group, name) != getattr(plain, name)]
    return [re.sub("_", dash, name) for name in found]
