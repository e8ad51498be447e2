"""The options of a training run, in groups, and the sentences for those that cannot work."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from crest_jax import CrestConfig, ExclusionConfig, RegionConfig
from crest_jax.algorithm.config import Embedding
from experiments.data import DATASETS, OWN_DATASETS, WITH_FOLDER
from experiments.harness.cli import UserError, as_options
from experiments.harness.options import (
    DROPS,
    BaselineConfig,
    CrestOptions,
    DataConfig,
    MachineConfig,
    NetworkConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    changed,
    require,
    require_positive,
)
from experiments.models import MODELS
from experiments.models.networks import Norm

Method = Literal[
    "full", "full_cut_off", "random", "stratified", "fixed", "crest", "craig", "gradmatch",
    "gradmatch_batch", "glister", "el2n", "forgetting", "top_loss", "dynamic_pruning",
    "dynamic_pruning_random",
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
TEXT_DATASETS = ("rotten_tomatoes", "imdb", "snli", "texts")
ENCODERS = ("minilm", "bert", "roberta")
# The groups and options that a method reads beside those that every method reads.
READS: dict[Method, tuple[str, ...]] = {
    "crest": ("preset", "crest"),
    "craig": ("baselines.reselections",),
    "gradmatch": ("baselines.reselections",),
    "gradmatch_batch": ("baselines.reselections",),
    "glister": ("baselines.reselections",),
    "el2n": ("baselines.scoring_networks",),
    "top_loss": ("baselines.pool_factor",),
    "dynamic_pruning": ("preset", "crest.exclusion"),
    "dynamic_pruning_random": ("preset", "crest.exclusion"),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run; the defaults run on the data that ship with the project."""

    method: Method = "crest"
    """How mini-batches are chosen. "full" takes all steps; the others take the budget, "full_cut_off"
    with the schedule of full training. "dynamic_pruning" and "dynamic_pruning_random" are "stratified"
    and "random" of the examples that CREST's exclusion leaves active."""
    preset: Literal["paper", "recommended"] = "recommended"
    """Settings of CREST: what the paper did, or what we recommend; --crest changes single ones."""
    dataset: Literal[DATASETS + TEXT_DATASETS] = "fashion_mnist_12k"  # type: ignore[valid-type]
    """Data set; "images", "idx", "table" and "texts" are your own, see --help data and --help text."""
    model: Literal[MODELS + ENCODERS] = "resnet8"  # type: ignore[valid-type]
    """Network."""
    epochs: int = 10
    """Passes over the data in full training."""
    budget: float = 0.1
    """Share of the steps of full training, in (0, 1]; the schedule is compressed to it."""
    batch_size: int = 128
    """m, examples in a mini-batch, of every method."""
    seed: int = 0
    """Seed of the initial parameters, the mini-batches and the augmentation."""
    out: Path = Path("runs/run")
    """Run folder."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Which examples."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    """The shape of a network for images."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """The optimizer and its schedule."""
    crest: CrestOptions = dataclasses.field(default_factory=CrestOptions)
    """Settings of CREST, over those of the preset."""
    baselines: BaselineConfig = dataclasses.field(default_factory=BaselineConfig)
    """Options of single baselines."""
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """What a run writes, and when it stops."""
    machine: MachineConfig = dataclasses.field(default_factory=MachineConfig)
    """Where it takes place."""
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    """Runs on text."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any work."""
        if (self.dataset in TEXT_DATASETS) != (self.model in ENCODERS):
            raise UserError(
                f"--dataset is {self.dataset} and --model {self.model} but images go with "
                f"{', '.join(MODELS)} and texts with {', '.join(ENCODERS)}; choose a pair."
            )
        if self.dataset == "table" and self.model != "mlp":
            raise UserError(
                f"--dataset is table and --model {self.model} but tables go with mlp; pass --model mlp."
            )
        if self.dataset in OWN_DATASETS and self.data.dir is None:
            raise UserError(
                f"--dataset {self.dataset} needs --data.dir, which says where your data lie; name it."
            )
        require("budget", self.budget, 0 < self.budget <= 1, "lie in (0, 1]", "0.1 is usual")
        require_positive("", self, "epochs", "batch_size")
        if not 0 <= self.seed < 2**32:
            raise UserError(
                f"--seed is {self.seed} but must lie in [0, 4294967295], for each seed to draw its own "
                "numbers; choose one there."
            )
        for option, why in self._without_effect():
            raise UserError(f"--{option} has no effect here and must be left out; {why}.")
        self.crest_config(1000, 1_000_000)  # says what is wrong with its settings

    def _without_effect(self) -> list[tuple[str, str]]:
        """Return the options that were given and that data, network or optimizer do not read."""
        on_text = self.dataset in TEXT_DATASETS
        found: list[tuple[str, str]] = []
        if on_text:
            found += [(f"network.{name}", "it is for images") for name in changed(self.network)]
            if self.data.augment:
                found.append(("data.augment", "it is for images"))
            if self.machine.shard:
                found.append(("machine.shard", "tokens lie whole on each device"))
        else:
            found += [(f"text.{name}", f"{self.dataset} is no text") for name in changed(self.text)]
        if self.network.imagenet_stem and not self.model.startswith("resnet"):
            found.append(("network.imagenet-stem", f"{self.model} is no residual network"))
        if self.network.norm is not None and not self.model.startswith("resnet"):
            found.append(("network.norm", f"{self.model} has no normalisation of images"))
        found += self._data_without_effect()
        if self.optim.name != "sgd":
            own = [name for name in changed(self.optim) if name in ("momentum", "nesterov")]
            found += [(f"optim.{name}", f"{self.optim.name} has none") for name in own]
        return found

    def _data_without_effect(self) -> list[tuple[str, str]]:
        """Return the options of data that were given and that this kind of data does not read."""
        given, found = changed(self.data), []
        if "dir" in given and self.dataset not in WITH_FOLDER:
            found.append(("data.dir", f"{self.dataset} is read from where it always lies"))
        if self.dataset == "table" and "augment" in given:
            found.append(("data.augment", "it is for images"))
        of_csv = (
            self.dataset == "table" and self.data.dir is not None and self.data.dir.suffix != ".npz"
        )
        for names, sound, why in (
            (("image-size", "image-fit"), self.dataset == "images", "it is for --dataset images"),
            (("label", "ignore"), of_csv, "it is for the .csv files of --dataset table"),
        ):
            found += [(f"data.{name}", why) for name in names if name in given and not sound]
        return found

    def unused_by(self, methods: Sequence[Method]) -> str | None:
        """Return a sentence about an option that was given and that none of the methods reads."""
        read = {name for method in methods for name in READS.get(method, ())}
        given = [f"crest.{name}" for name in changed(self.crest, "_")]
        given += [f"baselines.{name}" for name in changed(self.baselines, "_")]
        given += ["preset"] if self.preset != "recommended" else []
        for option in given:
            if not read & {option, option.partition(".")[0]}:
                return (
                    f"--{option.replace('_', '-')} has no effect here and must be left out; "
                    f"{' and '.join(methods)} {'does' if len(methods) == 1 else 'do'} not read it."
                )
        return None

    def for_method(self, method: Method) -> "TrainConfig":
        """Return the options of a run by another method, without those that it does not read."""
        plain, kept = TrainConfig(), {}
        for group in ("preset", "crest", "baselines"):
            own, default = getattr(self, group), getattr(plain, group)
            names = [name.partition(".")[2] for name in READS.get(method, ()) if name.startswith(group)]
            changes = {name: getattr(own, name) for name in names if name}
            kept[group] = own if "" in names else default
            if changes:
                kept[group] = dataclasses.replace(default, **changes)
        return dataclasses.replace(self, method=method, **kept)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network normalises by the statistics of a mini-batch."""
        return self.model.startswith("resnet") and self.norm != "group"

    @property
    def norm(self) -> Norm:
        """Normalisation of a residual network."""
        return self.network.norm or ("batch" if self.preset == "paper" else "weighted_batch")

    def crest_config(self, steps: int, num_examples: int) -> CrestConfig:
        """Return the settings of CREST for so many steps on so many examples.

        Raises:
          UserError: when they cannot work, in words of the command line.
        """
        own, warmup = self.crest, round(self.optim.warmup * steps)
        try:
            if self.preset == "paper":
                made = CrestConfig.paper(
                    num_examples=num_examples, steps=steps, batch_size=self.batch_size, warmup=warmup
                )
            else:
                made = CrestConfig.recommended(
                    steps=steps, first_drop=round(DROPS[0] * steps), batch_size=self.batch_size,
                    num_examples=num_examples, batch_norm=self.has_batch_norm,
                )  # fmt: skip
            given: dict[str, Any] = {"nonfinite": self.run.nonfinite}
            for name in ("subset_size", "picks", "stratified", "by_class", "pause_above"):
                if getattr(own, name) is not None:
                    given[name] = getattr(own, name)
            if own.picks == "importance" and own.by_class is None:
                given["by_class"] = False
            if own.embedding in get_args(Embedding):
                given["embedding"] = own.embedding
            if own.select_span is not None:
                low, high = (round(share * steps) for share in own.select_span)
                given["select_from"] = low or None
                given["select_until"] = None if high >= steps else max(high, low + 1)
            given["exclusion"] = None if own.exclude is False else self._exclusion(made.exclusion)
            given["region"] = self._region(made.region, warmup, num_examples)
            if given["region"] is not None and own.pause_above is None:
                given["pause_above"] = 1.0
            return dataclasses.replace(made, **given)
        except ValueError as error:
            raise UserError(as_options(str(error))) from error

    def exclusion(self, steps: int, num_examples: int) -> ExclusionConfig:
        """Return what becomes of learned examples, for methods that only exclude."""
        found = self.crest_config(steps, num_examples).exclusion
        if found is None:
            raise UserError(
                f"--crest.exclude is False but --method {self.method} only excludes; leave it out."
            )
        return found

    def _region(self, made: RegionConfig | None, warmup: int, num_examples: int) -> RegionConfig | None:
        own = self.crest
        given = {name: getattr(own.region, name) for name in changed(own.region, "_")}
        wanted = bool(given) or made is not None if own.regions is None else own.regions
        if not wanted:
            return None
        plain = RegionConfig(probe_size=min(256, num_examples), reference_step=warmup)
        return dataclasses.replace(made or plain, **given)

    def _exclusion(self, made: ExclusionConfig | None) -> ExclusionConfig:
        given = {
            name: getattr(self.crest.exclusion, name) for name in changed(self.crest.exclusion, "_")
        }
        if given.get("cooldown") == "never":
            given["cooldown"] = None
        return dataclasses.replace(made or ExclusionConfig.recommended(), **given)

    def refuse(self, names: tuple[str, ...], remedy: str) -> None:
        """Raise ``UserError`` if an option was given that a tool does not read.

        Args:
          names: fields, those of a group as "group.field", or whole groups.
          remedy: why, or what to do instead.
        """
        plain = TrainConfig()
        for name in names:
            own, default = self, plain
            for part in name.split("."):
                own, default = getattr(own, part), getattr(default, part)
            if own != default:
                option = name.replace("_", "-")
                if dataclasses.is_dataclass(own):
                    option += f".{changed(own)[0]}"
                raise UserError(f"--{option} has no effect here and must be left out; {remedy}.")

    def full_steps(self, count: int) -> int:
        """Return the steps of full training on ``count`` examples."""
        return self.epochs * math.ceil(count / self.batch_size)

    def steps(self, count: int) -> int:
        """Return the steps of this run on ``count`` examples."""
        full = self.full_steps(count)
        return full if self.method == "full" else max(1, round(self.budget * full))

    def as_json(self) -> dict[str, Any]:
        """Return the options as JSON values, without those that do not change the result."""
        values = dataclasses.asdict(self)
        for name in ("out", "resume", "machine"):
            del values[name]
        return json.loads(json.dumps(values, default=str))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """Return the options that ``as_json`` gave.

        >>> TrainConfig.from_json(TrainConfig(seed=3).as_json()) == TrainConfig(seed=3)
        True
        """
        return _typed(cls, values)


def _typed(cls: type, values: dict[str, Any]) -> Any:
    """Build a dataclass out of JSON values, with the types that its fields have."""
    hints, made = get_type_hints(cls), {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            made[name] = _typed(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            made[name] = tuple(value)
        else:
            made[name] = Path(value) if value is not None and Path in (hint, *get_args(hint)) else value
    return cls(**made)
