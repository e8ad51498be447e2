"""How evenly long gradients are along a training, which says where CREST pauses.

    python -m experiments.studies.evenness --settings short_mlp short_resnet --out runs/evenness

Trains on stratified batches; every so many steps CREST scores four subsets, and the evenness of their
gradients' lengths, ``(mean length)^2 / mean length^2``, is noted. The folder gets ``evenness.jsonl``,
to which another call adds its settings, ``summary.md`` and ``evenness.png``.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from crest_jax import stratified_batches
from crest_jax.algorithm.config import PAUSE_ABOVE
from crest_jax.diagnostics import measure_evenness
from experiments.harness.build import make_program, shared
from experiments.harness.cli import UserError, check_setting, one_sentence
from experiments.harness.options import ExclusionOptions
from experiments.harness.records import append_line, read_lines, table
from experiments.harness.run_folder import COMMIT, held_folder
from experiments.models.networks import Norm
from experiments.presets import SETTINGS, changed_in
from experiments.sweep import command_line

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the steps, in the table


@dataclasses.dataclass(frozen=True)
class EvennessConfig:
    """What to measure."""

    settings: tuple[str, ...] = (
        "short_mlp", "long_mlp", "mlp_20k", "imbalanced_mlp", "short_resnet",
    )  # fmt: skip
    """Settings of experiments.presets."""
    norm: Norm | None = None
    """Normalisation of a residual network; None: that of the setting."""
    data_dir: Path | None = None
    """Folder of the data, where the setting's are your own."""
    until: float = 0.5
    """Share of the steps that is trained; coresets are usually chosen in the first half."""
    points: int = 25
    """Times at which it is measured."""
    seed: int = 0
    """Of network and draws."""
    out: Path = Path("runs/evenness")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in self.settings:
            check_setting(name, SETTINGS)
        if not 0 < self.until <= 1 or self.points < 2:
            raise UserError(
                f"--until is {self.until} and --points {self.points} but must lie in (0, 1] and be at "
                "least 2; change them."
            )

    def name(self, setting: str) -> str:
        """Return what the measurement of a setting is called."""
        return setting if self.norm is None else f"{setting}, {self.norm}"


def measure(config: EvennessConfig, setting: str) -> dict[str, Any]:
    """Train, and measure on the way."""
    run = changed_in(
        SETTINGS[setting].options("crest", config.seed), norm=config.norm, data_dir=config.data_dir
    )
    own = dataclasses.replace(
        run.crest, select_span=(0.0, 1.0), exclude=False, exclusion=ExclusionOptions(), pause_above=1.0
    )
    program = make_program(shared(dataclasses.replace(run, crest=own)))
    init_key, train_key, measure_key = jax.random.split(jax.random.key(config.seed), 3)
    state = program.init(init_key)
    plain = stratified_batches(program.train, program.batch_size)
    chosen = plain.init(train_key, state.params, state.model_state)
    last = round(config.until * program.steps)
    points = set(np.linspace(0, last, config.points).round().astype(int).tolist())
    steps, values = [], []
    for step in tqdm(range(last + 1), desc=setting, unit="step"):
        if step in points:
            key, model = jax.random.fold_in(measure_key, step), (state.params, state.model_state)
            steps.append(step)
            values.append(measure_evenness(program.selection, *model, key=key))
        chosen, batch = plain.next_batch(chosen)
        state, _ = program.train_step(state, batch)
    return {
        "setting": config.name(setting), "steps": program.steps, "at": steps, "evenness": values,
        "seed": config.seed, "commit": COMMIT, "command": command_line(__file__),
    }  # fmt: skip


def summarise(rows: list[dict[str, Any]]) -> str:
    """Return the table.

    >>> row = {"setting": "one_two", "steps": 10, "at": [0, 5], "evenness": [1.0, 0.5]}
    >>> summarise([row]).splitlines()[-1].split("|")[1:4]
    [' one two ', ' 10    ', ' 1.00       ']
    """
    cells = []
    for row in rows:
        at = np.array(row["at"]) / row["steps"]
        nearest = [int(np.abs(at - share).argmin()) for share in SHARES]
        shown = [
            f"{row['evenness'][place]:.2f}" if share <= at[-1] + 0.01 else "-"
            for place, share in zip(nearest, SHARES, strict=True)
        ]
        cells.append([row["setting"].replace("_", " "), str(row["steps"]), *shown])
    return table(["setting", "steps", *(f"{share:.0%} of them" for share in SHARES)], cells)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw evenness along the training."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    for number, row in enumerate(rows):
        share = np.array(row["at"]) / row["steps"]
        name = row["setting"].replace("_", " ")
        style = "osD^v"[number % 5] + ("-", "--")[number // 5 % 2]
        panel.plot(share, row["evenness"], style, label=name, ms=3, lw=1.2)
    panel.axhline(PAUSE_ABOVE, color="0.4", lw=1, label="CREST pauses above")
    panel.set(xlabel="share of the steps", ylabel="evenness of gradient lengths", ylim=(0, 1.02))
    panel.grid(alpha=0.3)
    figure.legend(fontsize=7, loc="outside right upper")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure what is missing, then write and print the table."""
    with one_sentence("interrupted; the same command goes on with the settings that are missing."):
        config = tyro.cli(EvennessConfig, description=__doc__)
        with held_folder(config.out):
            path = config.out / "evenness.jsonl"
            rows = read_lines(path) if path.is_file() else []
            for setting in config.settings:
                if config.name(setting) not in {row["setting"] for row in rows}:
                    append_line(path, measure(config, setting))
                    rows = read_lines(path)
            made = list(dict.fromkeys(f"`{row['command']}` at commit {row['commit']}" for row in rows))
            text = f"{', '.join(made)}\n\n{summarise(rows)}\n"
            (config.out / "summary.md").write_text(text, encoding="utf-8")
            draw(rows, config.out / "evenness.png")
            print(summarise(rows))


if __name__ == "__main__":
    main()
