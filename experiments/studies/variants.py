"""Ways of choosing by name, and their runs: what several studies compare."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.config import Method, TrainConfig
from experiments.harness.cli import UserError, check_setting
from experiments.harness.options import ExclusionOptions, RegionOptions
from experiments.harness.records import append_line, read_lines
from experiments.models.networks import Norm
from experiments.presets import SETTINGS, changed_in, with_rate
from experiments.sweep import made_by, run_all

Run = dict[str, Any]
Preset = Literal["recommended", "paper"]
OF_A_CHECK = ("step", "reason", "began_region", "rho", "rho_unchanged", "interval", "coresets")


class Variant(NamedTuple):
    """A way of choosing.

    Attributes:
      text: what to call it.
      method: the method.
      preset: the settings of CREST.
      changes: what of them is changed; subsets are named in mini-batches.
    """

    text: str
    method: Method = "crest"
    preset: Preset = "recommended"
    changes: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed


THROUGHOUT: dict[str, Any] = {"select_span": (0.0, 1.0), "exclude": False, "pause_above": 1.0}
MEDOIDS = THROUGHOUT | {"picks": "medoids", "subset_size": 4}
IN_REGIONS = MEDOIDS | {"embedding": "logits", "regions": True}
VARIANTS: dict[str, Variant] = {
    "crest": Variant("CREST (recommended)"),
    "paper": Variant("CREST (paper)", preset="paper"),
    "full": Variant("full training", "full"),
    "full_cut_off": Variant("full training, cut off", "full_cut_off"),
    "random": Variant("random", "random"),
    "stratified": Variant("stratified", "stratified"),
    "dynamic_pruning": Variant("dynamic pruning", "dynamic_pruning"),
    "top_loss": Variant("highest losses of 2m", "top_loss"),
    "craig": Variant("CRAIG", "craig"),
    "gradmatch": Variant("GradMatch", "gradmatch"),
    "importance_2m": Variant("by length, r = 2m", changes=THROUGHOUT | {"subset_size": 2}),
    "importance_4m": Variant("by length, r = 4m", changes=THROUGHOUT | {"subset_size": 4}),
    "importance_8m": Variant("by length, r = 8m", changes=THROUGHOUT | {"subset_size": 8}),
    "medoids_2m": Variant("medoids, r = 2m", changes=MEDOIDS | {"subset_size": 2}),
    "medoids_4m": Variant("medoids, r = 4m", changes=MEDOIDS),
    "medoids_4m_logits": Variant(
        "medoids by logit gradients, r = 4m", changes=MEDOIDS | {"embedding": "logits"}
    ),
    "sketch_4m": Variant(
        "by length of all parameters' gradient, r = 4m",
        changes=THROUGHOUT | {"embedding": "sketch", "subset_size": 4},
    ),
    "regions_4m": Variant("medoids in regions, r = 4m", changes=IN_REGIONS),
    "no_check_4m": Variant(
        "the same, no check ends a region", changes=IN_REGIONS | {"region": RegionOptions(tau=1e6)}
    ),
    "paper_model": Variant(
        "the same, model as in the paper",
        changes=IN_REGIONS
        | {"region": RegionOptions(fitted_on="coresets", curvature="diagonal", smoothing="paper")},
    ),
    "diagonal_model": Variant(
        "the same, diagonal on rows of its own",
        changes=IN_REGIONS | {"region": RegionOptions(fitted_on="probe", curvature="diagonal")},
    ),
    "no_exclusion": Variant("recommended, none excluded", changes={"exclude": False}),
    "no_pause": Variant("recommended, never paused", changes={"pause_above": 1.0}),
    "throughout": Variant("recommended, coresets throughout", changes={"select_span": (0.0, 1.0)}),
    "first_third": Variant(
        "recommended, to a third of the steps", changes={"select_span": (0.0, 0.33)}
    ),
    "second_half": Variant("recommended, after the first drop", changes={"select_span": (0.5, 1.0)}),
}


@dataclasses.dataclass(frozen=True)
class VariantConfig:
    """What to run: a setting, ways of choosing and seeds."""

    setting: str
    """A setting of experiments.presets."""
    variants: tuple[str, ...]
    """Which ways of choosing."""
    out: Path
    """Folder of all runs."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds of every run."""
    rate: float | None = None
    """Learning rate of all methods; None: those of the setting."""
    norm: Norm | None = None
    """Normalisation of a residual network; None: that of the setting, and with CREST (paper) plain
    BatchNorm."""
    budget: float | None = None
    """Share of the steps of full training; None: that of the setting."""
    data_dir: Path | None = None
    """Folder of the data, where the setting's are your own."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Rows that the evaluations take."""
    done: tuple[Path, ...] = ()
    """Folders of earlier runs of this study on the same setting: what their summary.jsonl holds is not
    run again."""
    jobs: int = 1
    """Runs at a time; above 1 each has its share of the cores."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_setting(self.setting, SETTINGS)
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise UserError(
                f"--variants holds {', '.join(unknown)} but must be of {', '.join(VARIANTS)}; choose "
                "among these."
            )
        if self.jobs < 1 or not self.seeds:
            raise UserError(
                f"--jobs is {self.jobs} and --seeds {self.seeds} but there must be one of each."
            )
        for folder in self.done:
            read_summary(folder)

    def base(self, method: Method, seed: int) -> TrainConfig:
        """Return the options of a run as the setting has them."""
        own = SETTINGS[self.setting].options(method, seed)
        own = changed_in(own, norm=self.norm, data_dir=self.data_dir)
        if self.rate is not None:
            own = with_rate(own, self.rate)
        data = dataclasses.replace(own.data, evaluate_on=self.evaluate_on)
        budget = own.budget if self.budget is None else self.budget
        return dataclasses.replace(own, data=data, budget=budget)

    def options(self, name: str, seed: int) -> TrainConfig:
        """Return the options of one run of a variant."""
        variant = VARIANTS[name]
        made, changes = self.base(variant.method, seed), variant.changes
        if "subset_size" in changes:
            changes = changes | {"subset_size": changes["subset_size"] * made.batch_size}
        if changes.get("exclude") is False:
            changes = changes | {"exclusion": ExclusionOptions()}
        preset = variant.preset if variant.method == "crest" else made.preset
        crest = dataclasses.replace(made.crest, **changes)
        return self.in_folder(dataclasses.replace(made, preset=preset, crest=crest), name)

    def in_folder(self, run: TrainConfig, name: str) -> TrainConfig:
        """Return the options of a run in the folder of its name and seed."""
        folder = self.out / f"{name}-seed{run.seed}"
        return dataclasses.replace(run, out=folder, resume=folder.exists())

    def earlier(self) -> dict[tuple[str, int], Run]:
        """Return the runs of the folders that are done, which must be of the same setting.

        Returns:
          Each once, by variant and seed.
        """
        runs: list[Run] = []
        for folder in self.done:
            own = read_summary(folder)
            other = next((run["asked"] for run in own if run["asked"] != self.asked()), None)
            if other is not None:
                raise UserError(
                    f"--done holds {folder}, whose runs are of {other}, but must hold runs of "
                    f"{self.asked()}; leave it out."
                )
            runs += own
        return {(run["variant"], run["seed"]): run for run in runs}

    def asked(self) -> Run:
        """Return what runs must have alike to stand in one table."""
        names = ("setting", "rate", "norm", "budget", "evaluate_on")
        return {name: getattr(self, name) for name in names}


def read_summary(folder: Path) -> list[Run]:
    """Return the runs that a study wrote into a folder.

    Raises:
      UserError: where there are none.
    """
    path = folder / "summary.jsonl"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no summary.jsonl but must be a folder that this study, or "
            "experiments.studies.equivalent, wrote; run that first."
        )
    return read_lines(path)


def run_variants(config: VariantConfig, planned: Sequence[tuple[str, TrainConfig]]) -> list[Run]:
    """Run what is missing.

    Args:
      config: what to run.
      planned: names of variants, and the options of their runs.

    Returns:
      The runs in the order of ``planned``, each with the name of its variant.
    """
    known = config.earlier()
    keys = [(name, options.seed) for name, options in planned]
    missing = [options for key, (_, options) in zip(keys, planned, strict=True) if key not in known]
    new = iter(run_all(missing, config.jobs))
    return [
        known[key] if key in known else {**next(new), "variant": key[0], "asked": config.asked()}
        for key in keys
    ]


def write_summary(
    file: str, argv: Sequence[str] | None, config: VariantConfig, runs: list[Run], text: str, notes: str
) -> None:
    """Write ``summary.jsonl``, of a check only what tables read, and ``summary.md``; print the table.

    Args:
      file: of the script; see ``sweep.made_by``.
      argv: its arguments.
      config: what was run.
      runs: the runs.
      text: the table.
      notes: what it means.
    """
    lines = config.out / "summary.jsonl"
    lines.unlink(missing_ok=True)
    for run in runs:
        checks = [{name: row.get(name) for name in OF_A_CHECK} for row in run["checks"]]
        append_line(lines, run | {"checks": checks})
    made = (
        f"{made_by(file, argv, runs, config.jobs)}, {len(config.seeds)} seeds, {runs[0]['steps']} steps"
    )
    (config.out / "summary.md").write_text(f"{made}\n\n{text}\n{notes}", encoding="utf-8")
    print(text)
