"""Ask in about a minute whether CREST should pay for a training, before running it.

    python -m experiments.pilot --dataset fashion_mnist_12k --steps 500 --out runs/pilot.json
    python -m experiments.pilot --setting imbalanced_mlp --out runs/pilot.json

The very training is begun on stratified batches (see ``crest_jax.diagnostics.pilot``); gradients on the
way say how large a stratified batch a coreset is worth, and timed steps which size takes as long. Only
training rows are read. ``--setting`` begins with the options of one of ``experiments.presets``. Writes
one JSON file.
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tqdm import tqdm

from crest_jax.diagnostics import Pilot, pilot
from crest_jax.diagnostics.worth import MOST_PASSES
from experiments.config import TrainConfig
from experiments.harness.build import load_sources, make_program, shared
from experiments.harness.cli import UserError, named_setting, one_sentence, parse
from experiments.harness.options import MachineConfig, RunConfig, changed
from experiments.harness.run_folder import COMMIT, held_file, write_json
from experiments.presets import SETTINGS

MIDDLE_HALF = 0.674 / 1.96  # how far the middle half of an interval reaches, of its 95 %


def check_seconds(seconds: float) -> None:
    """Refuse seconds that no measurement can take."""
    if not 0 < seconds <= 1e9:
        raise UserError(f"--seconds is {seconds} but must lie in (0, 1e+09]; 60 is usual.")


@dataclasses.dataclass(frozen=True)
class PilotConfig:
    """What to ask about; every option of a training run can be given."""

    seconds: float = 60.0
    """For all of it, without compilation, roughly."""
    steps: int | None = None
    """Steps of the training asked about; None: as many as --epochs and --budget make."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(out=Path("runs/pilot.json"))
    )
    """Options of the run; --out is the file to write."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unused = ("method", "resume", "run", "data.evaluate_on", "baselines", "crest.embedding")
        self.run.refuse(unused, "steps of CREST and stratified batches are neither saved nor tested")
        machine = dataclasses.replace(
            MachineConfig(), compilation_cache=self.run.machine.compilation_cache
        )
        if self.run.machine != machine:
            option = next(name for name in changed(self.run.machine) if name != "compilation-cache")
            raise UserError(
                f"--machine.{option} has no effect here and must be left out; steps run on one device."
            )
        check_seconds(self.seconds)
        if self.steps is not None and self.steps < 16:
            raise UserError(f"--steps is {self.steps} but must be at least 16; ask about more steps.")
        if self.run.out.suffix != ".json":
            raise UserError(f"--out is {self.run.out} but must end in .json; name a file.")


def of_steps(run: TrainConfig, steps: int, count: int) -> TrainConfig:
    """Return the options of a training of so many steps on so many examples.

    >>> of_steps(TrainConfig(batch_size=64), 500, 20_000).steps(20_000)
    500
    """
    one = dataclasses.replace(run, epochs=1).full_steps(count)
    epochs = math.ceil(steps / one)
    return dataclasses.replace(run, epochs=epochs, budget=steps / (epochs * one))


def ask(run: TrainConfig, seconds: float) -> Pilot:
    """Run the pilot for one training."""
    program = make_program(shared(dataclasses.replace(run, method="crest")))
    init_key, key = jax.random.split(jax.random.key(run.seed))
    with tqdm(desc="pilot", unit="part") as bar:

        def progress(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        return pilot(
            program.train_step,
            program.init(init_key),
            program.apply_fn,
            program.train,
            steps=program.steps,
            losses=lambda metrics: metrics.losses,
            view=lambda state: (state.params, state.model_state),
            config=run.crest_config(program.steps, len(program.train)),
            gradient=lambda state, batch, key: program.gradient(state._replace(key=key), batch),
            seconds=seconds,
            key=key,
            progress=progress,
        )


def sentence(found: Pilot) -> str:
    """Say what a pilot found; the first word is the answer."""
    low, high = found.worth_interval
    own = found.equivalent_batch_interval
    advice = "" if found.pays else " Take a larger batch, or more steps, for the same time."
    answer = "Yes" if found.pays else "No"
    if low < 1 < high and found.effective_passes <= MOST_PASSES:
        end = high if found.worth < 1 else low  # the one beyond 1
        close = abs(math.log(found.worth)) < MIDDLE_HALF * abs(math.log(end / found.worth))
        answer = "Too close to call" if close else f"Probably {answer.lower()}"
        advice += " The interval holds 1: full runs may turn out either way."
    if found.worth > 1 and not found.pays:
        answer = "Probably no"
        advice = (
            f" But the training makes {found.passes:.1f} passes, {found.effective_passes:.0f} over the "
            f"examples that carry most of the gradient; above {MOST_PASSES} less noise hardly helps, "
            "by coresets or by a larger batch."
        )
    if found.paused == 1:
        answer, advice = "No", " Take a larger batch, or more steps, for more."
    noise = f"{found.noise:.2g} times the squared length of the full gradient"
    if found.noise < 0.5:
        noise += ", which is little: more steps should gain more than less noise does"
    return (
        f"{answer}: a coreset is worth a stratified batch of "
        f"{found.equivalent_batch:.2f} mini-batches [{own[0]:.2f}, {own[1]:.2f}], and a training with "
        f"CREST takes as long as one on stratified batches of {found.larger_batch:.2f} "
        f"({found.time_ratio:.2f} times the seconds for as many steps): {found.worth:.2f} "
        f"[{low:.2f}, {high:.2f}] times what a larger batch is worth.{advice}{_pauses(found)} "
        f"The variance of a stratified batch is {noise}. Gradients were compared at "
        f"{found.compared} of the first {found.trained} of {found.steps} steps."
    )


def _pauses(found: Pilot) -> str:
    """Say where CREST would pause, if anywhere."""
    if not found.paused:
        return ""
    where = "at both points" if found.paused == 1 else "at one of two points"
    even = ", ".join(f"{value:.2f}" for value in found.evenness)
    return (
        f" Gradients are about equally long (evenness {even}): {where} CREST pauses and takes "
        "stratified batches, which cost no more."
    )


def as_values(found: Pilot) -> dict[str, Any]:
    """Return an answer as values of JSON."""
    names = ("worth", "worth_interval", "effective_passes", "pays")
    return found._asdict() | {name: getattr(found, name) for name in names}


def main() -> None:
    """Read the command line, ask, write the file and print the answer."""
    with one_sentence("interrupted; start again."):
        named, args = named_setting(None, SETTINGS)
        default = PilotConfig()
        if named is not None:
            run = named.options("crest", default.run.seed)
            run = dataclasses.replace(run, out=default.run.out, run=RunConfig())
            default = PilotConfig(run=run)
        config = parse(PilotConfig, default=default, description=__doc__, argv=args)
        run = config.run
        if config.steps is not None:
            if (run.epochs, run.budget) != (default.run.epochs, default.run.budget):
                raise UserError(
                    f"--steps is {config.steps} but --epochs or --budget are given too; leave them out."
                )
            run = of_steps(run, config.steps, len(load_sources(run)[1]))
        with held_file(run.out):
            found = ask(run, config.seconds)
            values = {
                **as_values(found),
                "run": run.as_json(),
                "seconds": config.seconds,
                "seed": run.seed,
                "commit": COMMIT,
                "device": jax.devices()[0].device_kind,
            }
            write_json(config.run.out, values)
    print(f"{sentence(found)}\nAll numbers are in {run.out}.")


if __name__ == "__main__":
    main()
