"""Check the pilot's answer against full runs.

    python -m experiments.studies.equivalent --setting mlp_20k --out runs/mlp_20k
    python -m experiments.studies.pilot_check --runs runs/mlp_20k --out runs/pilot_check

Asks ``crest_jax.diagnostics.pilot`` about every setting of one or more comparisons by ``equivalent``,
then puts its predicted lead at equal seconds beside the one that was measured there. The pilot sees
training and validation rows only; the comparison judged on test rows. Writes ``pilots.jsonl`` (a
setting that is there is not asked again), ``pilot_check.md`` and ``pilot_check.png``.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from tqdm import tqdm

from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import append_line, read_lines, table
from experiments.harness.run_folder import COMMIT, held_folder
from experiments.harness.stats import interval, with_interval
from experiments.pilot import as_values, ask, check_seconds
from experiments.presets import SETTINGS
from experiments.studies.settings_map import leads, read_settings
from experiments.sweep import command_line


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """What to compare."""

    runs: tuple[Path, ...]
    """Folders that experiments.studies.equivalent wrote."""
    seconds: float = 120.0
    """For the trials of each pilot, roughly."""
    seed: int = 0
    """Of the pilots."""
    out: Path = Path("runs/pilot_check")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_seconds(self.seconds)


def measured(folders: tuple[Path, ...]) -> dict[str, list[float]]:
    """Return CREST's leads over stratified batches at equal seconds, by setting, in points."""
    return {name: leads(runs, "longer") for name, runs in read_settings(folders).items()}


def summarise(pilots: list[dict[str, Any]], leads: dict[str, list[float]]) -> str:
    """Return the table and the count of right signs."""
    rows = []
    right = decided = 0
    for found in pilots:
        mean, half = interval(leads[found["setting"]])
        agree = (found["gain_at_equal_time"] > 0) == (mean > 0)
        clear = abs(mean) > half
        right, decided = right + agree, decided + clear
        rows.append(
            [
                found["setting"],
                f"{found['gain_at_equal_time']:+.2f} ± {found['gain_at_equal_time_error']:.2f}",
                with_interval(leads[found["setting"]], sign="+"),
                "yes" if agree else "no",
                "yes" if clear else "no",
                f"{found['steps']} of {found['target']}",
                str(found["seeds"]),
                f"{found['time_ratio']:.2f}",
                f"{found['gain_at_equal_steps']:+.2f}",
                f"{found['gain_per_doubling']:.2f}",
                f"{100 * found['redundancy']['learned']:.0f}",
            ]
        )
    header = [
        "setting", "predicted gain", "measured gain", "same sign", "measured sign is clear",
        "steps of trials", "seeds", "time ratio", "gain at equal steps", "gain per doubling",
        "learned, %",
    ]  # fmt: skip
    signs = [interval(leads[found["setting"]])[0] > 0 for found in pilots]
    return (
        table(header, rows) + f"\n\nThe sign is right in {right} of {len(pilots)} settings, of which "
        f"{sum(signs)} are positive and {len(signs) - sum(signs)} negative; in {decided} of them the "
        "95 % interval of the measured gain leaves out 0."
    )


def draw(pilots: list[dict[str, Any]], leads: dict[str, list[float]], path: Path) -> None:
    """Draw predicted against measured gains."""
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    panel = figure.subplots()
    for number, found in enumerate(pilots):
        mean, half = interval(leads[found["setting"]])
        panel.errorbar(
            found["gain_at_equal_time"], mean, xerr=2 * found["gain_at_equal_time_error"], yerr=0.0 if
            np.isnan(half) else half, fmt="osD^"[number // 10 % 4], ms=5, capsize=2, lw=1,
            label=found["setting"].replace("_", " "),
        )  # fmt: skip
    panel.axhline(0, color="0.4", lw=1)
    panel.axvline(0, color="0.4", lw=1)
    # A pilot that is much shorter than its training exaggerates: small leads must stay legible.
    panel.set(xscale="symlog", yscale="symlog")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(FixedLocator([-10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10]))
        axis.set_major_formatter("{x:g}")
    line = np.linspace(-10, 10, 401)
    panel.plot(line, line, color="0.7", ls="--", lw=1)
    panel.set(xlabel="gain that the pilot predicts, points", ylabel="gain measured at equal seconds")
    panel.grid(alpha=0.3)
    figure.legend(fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Read the command line, ask about what was not asked yet, and write the table."""
    with one_sentence("interrupted; the same command goes on with the settings that are missing."):
        config = tyro.cli(CheckConfig, description=__doc__)
        leads = measured(config.runs)
        unknown = [name for name in leads if name not in SETTINGS]
        if unknown:
            raise UserError(
                f"--runs hold the setting {unknown[0]}, of an earlier version, but the pilot is asked "
                f"about {', '.join(SETTINGS)}; name folders of runs on these."
            )
        with held_folder(config.out):
            lines = config.out / "pilots.jsonl"
            there = {line["setting"] for line in read_lines(lines)} if lines.is_file() else set()
            for name in tqdm(
                [name for name in leads if name not in there], desc="pilots", unit="setting"
            ):
                found = ask(SETTINGS[name], config.seconds, config.seed)
                append_line(lines, as_values(found) | {"setting": name, "commit": COMMIT})
            pilots = [line for line in read_lines(lines) if line["setting"] in leads]
            text = summarise(pilots, leads)
            commits = ", ".join(sorted({str(line["commit"]) for line in pilots}))
            made = f"`{command_line(__file__)}` at commit {commits}"
            (config.out / "pilot_check.md").write_text(f"{made}\n\n{text}\n", encoding="utf-8")
            draw(pilots, leads, config.out / "pilot_check.png")
    print(text)


if __name__ == "__main__":
    main()
