"""The options of a training run, and the sentences for those that cannot work."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from crest_jax import CrestConfig
from experiments.data import DATASETS
from experiments.models import MODELS

Method = Literal[
    "full", "truncated", "random", "stratified", "fixed", "crest", "craig", "gradmatch",
    "gradmatch_batch", "glister", "el2n", "forgetting", "hardest", "unlearned", "random_unlearned",
]  # fmt: skip


TEXT_DATASETS = ("rotten_tomatoes", "imdb", "snli", "texts")
ENCODERS = ("minilm", "bert", "roberta")


# Options that change no result, or nothing but the order of sums.
NO_RESULT = (
    "out", "resume", "tensorboard", "step_timeout", "devices", "shard", "distributed", "coordinator",
    "processes", "process",
)  # fmt: skip


class UserError(Exception):
    """A mistake of the user's, told in one sentence."""


SETTINGS_OF_CREST = {field.name for field in dataclasses.fields(CrestConfig)}


def as_options(sentence: str) -> str:
    """Return a sentence of the library with CREST's settings named as on the command line.

    >>> as_options("tau is -1.0 but must be positive; raise tau and batch_size.")
    '--tau is -1.0 but must be positive; raise tau and --batch-size.'
    """

    def option(found: re.Match[str]) -> str:
        name = found[0]
        own = name in SETTINGS_OF_CREST and ("_" in name or found.start() == 0)  # else it is a word
        return f"--{name.replace('_', '-')}" if own else name

    return re.sub(r"(?<![\w'\"./-])\w+", option, sentence)


@dataclasses.dataclass(frozen=True)
class CrestOptions(CrestConfig):
    """Settings of CREST from the command line: sentences name the options."""

    def __post_init__(self) -> None:
        """Check every field."""
        try:
            super().__post_init__()
        except ValueError as error:
            raise UserError(as_options(str(error))) from error


def _require(name: str, value: float, sound: bool, rule: str, remedy: str) -> None:
    """Raise ``UserError`` unless the value of an option is finite and sound."""
    if not (math.isfinite(value) and sound):
        raise UserError(f"--{name.replace('_', '-')} is {value} but must {rule}; {remedy}.")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Options of runs on text."""

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
    text_columns: tuple[str, ...] = ("text",)
    """Column of the text, or the two columns of a pair."""
    label_column: str = "label"
    """Column of the label."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any work."""
        _require("max_tokens", self.max_tokens, self.max_tokens >= 8, "be at least 8", "128 is usual")
        if self.dropout is not None:
            _require("dropout", self.dropout, 0 <= self.dropout < 1, "lie in [0, 1)", "0.1 is usual")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run; the defaults run on the data that ship with the project."""

    method: Method = "crest"
    """How mini-batches are chosen. "full" takes all steps; the others take the budget, "truncated" with
    the schedule of full training. "unlearned" and "random_unlearned" are "stratified" and "random" of
    the examples that CREST's exclusion would leave in play."""
    dataset: Literal[DATASETS + TEXT_DATASETS] = "fashion_mnist_12k"  # type: ignore[valid-type]
    """Data set."""
    data_dir: Path | None = None
    """Folder of the data; by default where the system's package or the preparation puts them."""
    model: Literal[MODELS + ENCODERS] = "resnet8"  # type: ignore[valid-type]
    """Network."""
    width: int | None = None
    """Width of the network's first stage (resnet) or of its hidden layers (mlp); None: the usual."""
    imagenet_stem: bool = False
    """Begin a residual network as on ImageNet: a 7x7 convolution of stride 2 and a pooling."""
    augment: bool | None = None
    """Shift and mirror training images at random; None: as is usual for the data, colour sets only."""
    epochs: int = 10
    """Passes over the data in full training."""
    budget: float = 0.1
    """Share of the steps of full training, in (0, 1]; the schedule is compressed to it."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
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
    seed: int = 0
    """Seed of the initial parameters, the mini-batches and the augmentation."""
    evaluations: int = 10
    """Evaluations during the run, evenly spaced; the last one is after the last step."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Rows that the evaluations take; tune on validation only."""
    checkpoints: int = 10
    """Checkpoints during the run, evenly spaced."""
    out: Path = Path("runs/run")
    """Run folder."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    step_timeout: float | None = None
    """Seconds after which a run that finished no step ends by itself, with a sentence; compilation
    counts. None: 600 with several processes, else it waits."""
    devices: int = 1
    """Devices that share the work of every step; 0: all. With several processes all are used."""
    shard: bool | None = None
    """Put each training image on one device only. None: where a copy of all would take more than a
    quarter of a device's memory."""
    distributed: bool = False
    """One process of several, which the environment names (SLURM, Kubernetes, TPU pods)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, without --distributed."""
    processes: int | None = None
    """Number of processes, without --distributed."""
    process: int | None = None
    """Which of them this one is, from 0."""
    reselections: int = 10
    """Times that craig, gradmatch and glister choose their subset, evenly spaced over the run."""
    pool_factor: int = 2
    """hardest draws so many times the mini-batch and keeps the highest losses."""
    scoring_networks: int = 1
    """Networks that el2n trains, each for the budget, to score the examples."""
    select_span: tuple[float, float] = (0.35, 0.5)
    """Shares of the steps between which crest selects coresets; sets --select-from and --select-until.
    The default ends with the first drop of the rate, after which they gain nothing, and begins where
    their gain begins; 0 1 is the paper's way."""
    embedding: Literal["logits", "last_layer", "sketch"] = "logits"
    """What crest compares examples by: the gradient with respect to the logits, to the last layer, or
    to all parameters, randomly projected to 64 numbers (an ablation: one backward pass an example)."""
    crest: Annotated[
        tyro.conf.OmitArgPrefixes[CrestConfig], tyro.conf.arg(constructor=CrestOptions)
    ] = dataclasses.field(default_factory=CrestConfig)
    """Settings of CREST; its batch size is that of every method."""
    text: tyro.conf.OmitArgPrefixes[TextConfig] = dataclasses.field(default_factory=TextConfig)
    """Options of runs on text."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any work."""
        if isinstance(self.crest, CrestOptions):  # the same settings given in code are equal
            object.__setattr__(self, "crest", CrestConfig(**dataclasses.asdict(self.crest)))
        if (self.dataset in TEXT_DATASETS) != (self.model in ENCODERS):
            raise UserError(
                f"--dataset is {self.dataset} and --model {self.model} but images go with "
                f"{', '.join(MODELS)} and texts with {', '.join(ENCODERS)}; choose a pair."
            )
        if self.augment and self.dataset in TEXT_DATASETS:
            raise UserError(
                f"--augment is for images but --dataset {self.dataset} is text; leave it out."
            )
        if self.shard and self.dataset in TEXT_DATASETS:
            raise UserError(
                f"--shard is for images but --dataset {self.dataset} is text, whose tokens lie whole "
                "on each device; leave it out."
            )
        _require("budget", self.budget, 0 < self.budget <= 1, "lie in (0, 1]", "0.1 is usual")
        self._check_training()
        low, high = self.select_span
        if not 0 <= low < high <= 1:
            raise UserError(
                f"--select-span is {low} {high} but must be two rising shares in [0, 1]; 0 1 selects "
                "throughout."
            )
        if self.devices < 0:
            raise UserError(
                f"--devices is {self.devices} but must be at least 0; 0 means all there are."
            )
        if self.step_timeout is not None:
            _require(
                "step_timeout", self.step_timeout, self.step_timeout > 0, "be finite and positive",
                "600 is usual, or leave it out",
            )  # fmt: skip
        if not 0 <= self.seed < 2**32:
            raise UserError(
                f"--seed is {self.seed} but must lie in [0, 4294967295], for each seed to draw its own "
                "numbers; choose one there."
            )
        if self.processes is not None and self.processes < 1:
            raise UserError(
                f"--processes is {self.processes} but must be at least 1; pass the number of processes."
            )
        for name in (
            "epochs", "evaluations", "checkpoints", "reselections", "pool_factor", "scoring_networks",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)} but must be at least 1; pass "
                    "a positive integer."
                )

    def _check_training(self) -> None:
        """Refuse network and optimizer settings that cannot work."""
        rate, decay = self.learning_rate, self.weight_decay
        _require("learning_rate", rate, rate > 0, "be finite and above 0", "0.1 is usual")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "lie in [0, 1)", "0.9 is usual")
        if self.nesterov and self.momentum == 0:
            raise UserError(
                "--momentum is 0.0 but must be above 0 with --nesterov, a form of the momentum; pass "
                "0.9, say, or leave --nesterov out."
            )
        _require("weight_decay", decay, decay >= 0, "be finite and at least 0", "0.0001 is usual")
        _require(
            "warmup", self.warmup, 0 <= self.warmup < 0.5,
            "lie in [0, 0.5), before the first drop of the rate", "0.1 is usual",
        )  # fmt: skip
        if self.width is not None:
            _require(
                "width", self.width, self.width >= 1, "be at least 1", "leave it out for the usual"
            )
        if self.method in ("unlearned", "random_unlearned") and self.crest.exclude_below == 0:
            raise UserError(
                f"--exclude-below is 0.0 but must be positive with --method {self.method}, which "
                "leaves out what is learned; 0.02 is usual."
            )

    def refuse(self, names: tuple[str, ...], remedy: str) -> None:
        """Raise ``UserError`` if an option that would have no effect was given."""
        for name in names:
            if getattr(self, name) != TrainConfig.__dataclass_fields__[name].default:
                option = name.replace("_", "-")
                raise UserError(f"--{option} has no effect here and must be left out; {remedy}.")

    def full_steps(self, count: int) -> int:
        """Return the steps of full training on ``count`` examples."""
        return self.epochs * math.ceil(count / self.crest.batch_size)

    def steps(self, count: int) -> int:
        """Return the steps of this run on ``count`` examples."""
        full = self.full_steps(count)
        return full if self.method == "full" else max(1, round(self.budget * full))

    def as_json(self) -> dict[str, Any]:
        """Return the options as JSON values, without those that do not change the result."""
        values = dataclasses.asdict(self)
        for name in NO_RESULT:
            del values[name]
        return json.loads(json.dumps(values, default=str))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """Return the options that ``as_json`` gave.

        >>> TrainConfig.from_json(TrainConfig(seed=3).as_json()) == TrainConfig(seed=3)
        True
        """
        nested = {"crest": CrestConfig, "text": TextConfig}
        parts = {name: made(**_typed(values[name])) for name, made in nested.items()}
        return cls(**{**_typed(values), **parts})


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Give JSON values the types that options have: tuples and paths."""

    def typed(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        is_path = name in ("data_dir", "checkpoint", "train_file", "test_file")
        return Path(value) if is_path and value is not None else value

    return {name: typed(name, value) for name, value in values.items()}
