"""Ask in about a minute whether CREST should pay for a training, before running it.

    python -m experiments.pilot --dataset fashion_mnist_12k --steps 500 --out runs/pilot.json
    python -m experiments.pilot --setting imbalanced_mlp --out runs/pilot.json

The very training is begun on stratified batches (see ``crest_jax.diagnostics.pilot``); gradients on the
way say how large a stratified batch a coreset is worth, and timed steps which size takes as long. Only
training rows are read. ``--setting`` begins with the options of one of ``experiments.presets``. Data,
model, rate and schedule are named as for ``experiments.train``. Writes the JSON file ``--out``.
Compilation comes on top, some minutes for a residual network on a CPU.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from tqdm import tqdm

from crest_jax.diagnostics import Pilot, pilot
from crest_jax.diagnostics.worth import PARTS
from experiments.config import TrainConfig
from experiments.harness.build import load_sources, make_program, shared
from experiments.harness.cli import UserError, named_setting, one_sentence, parse
from experiments.harness.options import MachineConfig, RunConfig
from experiments.harness.run_folder import COMMIT, held_file, write_json
from experiments.presets import SETTINGS, larger, of_steps

# Options of a training run that a pilot does not read.
NOT_SAVED = ("method", "resume", "run", "data.evaluate_on", "baselines", "crest.embedding")
ONE_DEVICE = tuple(
    f"machine.{field.name}"
    for field in dataclasses.fields(MachineConfig)
    if field.name != "compilation_cache"
)


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
    """Steps of the training asked about, in place of --epochs and --budget."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(out=Path("runs/pilot.json"))
    )
    """Options of the run; --out is the file to write."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        self.run.refuse(NOT_SAVED, "steps of CREST and stratified batches are neither saved nor tested")
        self.run.refuse(ONE_DEVICE, "steps run on one device")
        check_seconds(self.seconds)
        if self.steps is not None and self.steps < 16:
            raise UserError(f"--steps is {self.steps} but must be at least 16; ask about more steps.")
        if self.run.out.suffix != ".json":
            raise UserError(f"--out is {self.run.out} but must end in .json; name a file.")


def ask(run: TrainConfig, seconds: float) -> Pilot:
    """Run the pilot for one training."""
    program = make_program(shared(dataclasses.replace(run, method="crest")))
    init_key, key = jax.random.split(jax.random.key(run.seed))
    with tqdm(desc="pilot", unit="part", total=PARTS) as bar:

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


def asked(run: TrainConfig, found: Pilot, count: int) -> str:
    """Say what the answer is about, and which options the batches that take as long are."""
    optim = run.optim
    about = (
        f"This is about {run.dataset}, {run.model}, {found.steps} steps of {found.batch_size} "
        f"examples, {optim.name} at a rate of {optim.learning_rate:g}, schedule {optim.schedule}."
    )
    more = larger(run, found.larger_batch, count)
    if more.batch_size >= count:
        return about
    return (
        f"{about}\nThe larger batches for {found.steps} steps, beside your other options: --method "
        f"stratified --batch-size {more.batch_size} --epochs {more.epochs} --budget {more.budget:.8g}."
    )


def as_values(found: Pilot) -> dict[str, Any]:
    """Return an answer as values of JSON."""
    names = ("worth", "worth_interval", "effective_passes", "pays", "verdict")
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
        config = parse(
            PilotConfig, default=default, description=__doc__, argv=args, unread=NOT_SAVED + ONE_DEVICE
        )
        run = config.run
        length = (default.run.epochs, default.run.budget)
        if config.steps is not None and (run.epochs, run.budget) != length:
            raise UserError(
                f"--steps is {config.steps} but --epochs or --budget are given too; leave them out."
            )
        with held_file(run.out):
            count = len(load_sources(run)[1])
            if config.steps is not None:
                run = of_steps(run, config.steps, count)
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
    print(f"{found}\n{asked(run, found, count)} All numbers are in {run.out}.")


if __name__ == "__main__":
    main()
