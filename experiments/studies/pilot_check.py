"""Check the pilot's answer against full runs.

    python -m experiments.studies.equivalent --setting mlp_20k --jobs 2 --out runs/mlp_20k
    python -m experiments.studies.pilot_check --runs runs/mlp_20k --out runs/pilot_check

Asks ``crest_jax.diagnostics.pilot`` about every setting of which ``experiments.studies.equivalent``
made runs, then puts the predicted worth of CREST (the equivalent batch over the batch that takes as
long) beside the one that was measured there. The pilot sees training rows only; the runs are judged on
test rows. Writes ``pilots.jsonl`` (a setting that is there is not asked again), ``pilot_check.md`` and
``pilot_check.png``.
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from crest_jax.diagnostics import Pilot
from crest_jax.diagnostics.answer import VERDICTS
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import append_line, read_lines, record, table
from experiments.harness.report_figures import plain_ticks
from experiments.harness.run_folder import COMMIT, held_folder
from experiments.harness.stats import interval, with_interval
from experiments.pilot import ask, check_seconds
from experiments.presets import SETTINGS
from experiments.studies.equivalent import leads_for_seconds, worth_of
from experiments.studies.settings_map import leads, read_settings
from experiments.studies.variants import Run, VariantConfig
from experiments.sweep import command_line

Interval = tuple[float, float, float]  # value, lower end, upper end


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """What to compare."""

    runs: tuple[Path, ...]
    """Folders that experiments.studies.equivalent wrote."""
    seconds: float = 60.0
    """For each pilot, roughly."""
    seed: int = 0
    """Of the pilots."""
    out: Path = Path("runs/pilot_check")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_seconds(self.seconds)


def measured(runs: list[Run]) -> Interval:
    """Return the equivalent batch of CREST over the batch that took as long, with its interval."""
    found = worth_of(runs, "crest")
    return found.size / found.as_long, found.low / found.as_long, found.high / found.as_long


def said_by(found: dict[str, Any]) -> Pilot:
    """Return an answer as it was given."""
    return Pilot(**{name: found[name] for name in Pilot._fields})


def lead_of(runs: list[Run]) -> tuple[float, float]:
    """Return the points by which CREST is ahead of a batch that takes as long, and their interval."""
    return interval(leads_for_seconds(runs, "crest"))


def summarise(pilots: list[dict[str, Any]], settings: dict[str, list[Run]]) -> str:
    """Return the table and the count of right signs."""
    rows, ends = [], Counter[tuple[str, str]]()
    right = decided = covered = known = 0
    for found in pilots:
        own, said = measured(settings[found["setting"]]), said_by(found)
        there = math.isfinite(own[0])
        lead, half = lead_of(settings[found["setting"]])
        clear, agree = abs(lead) > half, said.pays == (lead > 0)
        low, high = said.worth_interval
        inside = there and low <= own[0] <= high
        known, covered = known + there, covered + inside
        right, decided = right + (agree and clear), decided + clear
        ends[said.verdict, ("ahead" if lead > 0 else "behind") if clear else "level"] += 1
        rows.append(
            [
                found["setting"],
                f"{said.worth:.2f} [{low:.2f}, {high:.2f}]",
                f"{said.effective_passes:.1f}",
                said.verdict.lower(),
                "{:.2f} [{:.2f}, {:.2f}]".format(*own) if there else "a larger batch gains nothing",
                f"{lead:+.2f} ± {half:.2f}",
                ("yes" if agree else "no") if clear else "level",
                ("yes" if inside else "no") if there else "-",
                f"{said.equivalent_batch:.2f}",
                f"{said.larger_batch:.2f}",
                f"{said.noise:.2g}",
                with_interval(leads(settings[found["setting"]], "longer"), sign="+"),
            ]
        )
    header = [
        "setting", "predicted worth", "effective passes", "answer", "measured worth",
        "measured lead over the batch that takes as long", "right", "interval covers",
        "equivalent batch", "batch that takes as long", "noise over signal",
        "measured lead over more steps for the same seconds",
    ]  # fmt: skip
    answers = [answer for answer in VERDICTS if any(answer == said for said, _ in ends)]
    outcomes = ("ahead", "level", "behind")
    counts = [[answer.lower(), *(str(ends[answer, end]) for end in outcomes)] for answer in answers]
    counted = table(["answer", "CREST clearly ahead", "level", "clearly behind"], counts)
    return (
        f"{counted}\n\nSettings by answer and by the measured lead over the batch that takes as "
        f"long.\n\n{table(header, rows)}\n\nThe side is right in {right} of the {decided} settings "
        "whose measured lead is clear; the pilot's 95 % interval covers the measured worth in "
        f"{covered} of {known}. A lead is level where its interval holds 0. What the batch that takes "
        "as long reaches is interpolated between the sizes that were run."
    )


def draw(pilots: list[dict[str, Any]], settings: dict[str, list[Run]], path: Path) -> None:
    """Draw predicted against measured worth."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    panel = figure.subplots()
    for number, found in enumerate(pilots):
        value, low, high = measured(settings[found["setting"]])
        if not math.isfinite(value):
            continue
        said = said_by(found)
        own, ends = said.worth, said.worth_interval
        panel.errorbar(
            own, value, xerr=[[own - ends[0]], [ends[1] - own]],
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="osD^"[number // 10 % 4],
            ms=5, capsize=2, lw=1, label=found["setting"].replace("_", " "),
        )  # fmt: skip
    panel.axhline(1, color="0.4", lw=1)
    panel.axvline(1, color="0.4", lw=1)
    panel.set(xscale="log", yscale="log")
    panel.axline((1, 1), (2, 2), color="0.7", ls="--", lw=1)
    panel.set(xlabel="worth that the pilot predicts", ylabel="worth measured in full runs")
    for axis in (panel.xaxis, panel.yaxis):
        plain_ticks(axis)
    panel.grid(alpha=0.3)
    figure.legend(fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=130)


def asked_about(runs: list[Run], seed: int) -> Any:
    """Return the options of the training that runs were of."""
    asked = runs[0]["asked"]
    if asked["setting"] not in SETTINGS:
        raise UserError(
            f"--runs hold the setting {asked['setting']}, of an earlier version, but the pilot is "
            f"asked about {', '.join(SETTINGS)}; name folders of runs on these."
        )
    given = {name: asked[name] for name in ("setting", "rate", "norm", "budget")}
    return VariantConfig(variants=("crest",), out=Path("runs"), **given).base("crest", seed)


def main() -> None:
    """Read the command line, ask about what was not asked yet, and write the table."""
    with one_sentence("interrupted; the same command goes on with the settings that are missing."):
        config = tyro.cli(CheckConfig, description=__doc__)
        settings = read_settings(config.runs)
        asked = {name: asked_about(runs, config.seed) for name, runs in settings.items()}
        with held_folder(config.out):
            path = config.out / "pilots.jsonl"
            pilots = read_lines(path) if path.is_file() else []
            there = {found["setting"] for found in pilots}
            for name, run in tqdm(asked.items(), desc="settings", unit="setting"):
                if name not in there:
                    found = record(ask(run, config.seconds)._asdict(), setting=name, commit=COMMIT)
                    append_line(path, found)
                    pilots.append(found)
            pilots = [found for found in pilots if found["setting"] in settings]
            commits = ", ".join(sorted({str(found["commit"]) for found in pilots}))
            made = f"`{command_line(__file__, None)}` at commit {commits}"
            text = summarise(pilots, settings)
            (config.out / "pilot_check.md").write_text(f"{made}\n\n{text}\n", encoding="utf-8")
            draw(pilots, settings, config.out / "pilot_check.png")
            print(f"{text}\nThe picture is {config.out / 'pilot_check.png'}.")


if __name__ == "__main__":
    main()
