"""Ask in about two minutes whether CREST should pay for a training, before running it.

    python -m experiments.pilot --dataset fashion_mnist_12k --epochs 10 --out runs/pilot.json
    python -m experiments.pilot --setting imbalanced_mlp --out runs/pilot.json

Short trials of the very training (see ``crest_jax.diagnostics.pilot``) measure what CREST gains at
equal steps, what it costs, and what random batches would make of that time. Accuracies are taken on
the data set's validation rows, or else on a tenth of the training rows that the trials do not see;
test rows are never touched. ``--setting`` begins with the options of one of ``experiments.presets``.
Writes one JSON file.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax import ArraySource, BatchSelector, fit, make_evaluate
from crest_jax.diagnostics import Pilot, pilot
from experiments.config import TrainConfig
from experiments.harness.build import Training, load_data, make_training
from experiments.harness.cli import UserError, named_setting, one_sentence, parse
from experiments.harness.options import MachineConfig, RunConfig, changed
from experiments.harness.run_folder import COMMIT, held_file, write_json
from experiments.presets import SETTINGS, Setting, with_rate


def check_seconds(seconds: float) -> None:
    """Refuse seconds that no trials can take."""
    if not 0 < seconds <= 1e9:
        raise UserError(f"--seconds is {seconds} but must lie in (0, 1e+09]; 120 is usual.")


@dataclasses.dataclass(frozen=True)
class PilotConfig:
    """What to ask about; every option of a training run can be given."""

    seconds: float = 120.0
    """For all trials together, without compilation, roughly."""
    crest_rate: float | None = None
    """Learning rate of CREST's trials; None: that of the run."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(out=Path("runs/pilot.json"))
    )
    """Options of the run; --out is the file to write."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unused = ("method", "resume", "run", "data.evaluate_on", "baselines", "crest.embedding")
        self.run.refuse(unused, "trials of CREST and stratified batches are neither saved nor tested")
        machine = dataclasses.replace(
            MachineConfig(), compilation_cache=self.run.machine.compilation_cache
        )
        if self.run.machine != machine:
            option = next(name for name in changed(self.run.machine) if name != "compilation-cache")
            raise UserError(
                f"--machine.{option} has no effect here and must be left out; trials run on one device."
            )
        check_seconds(self.seconds)
        if self.crest_rate is not None and not 0 < self.crest_rate < math.inf:
            raise UserError(
                f"--crest-rate is {self.crest_rate} but must be finite and above 0; leave it out for "
                "the run's --optim.learning-rate."
            )
        if self.run.out.suffix != ".json":
            raise UserError(f"--out is {self.run.out} but must end in .json; name a file.")

    def asked(self) -> Setting:
        """Return the setting asked about."""
        rates: dict[Any, float] = {} if self.crest_rate is None else {"crest": self.crest_rate}
        return Setting(self.run, rates)


def split(dataset: Any, seed: int) -> tuple[ArraySource, ArraySource]:
    """Return training rows, and rows to judge by: validation rows, or a tenth of the training rows."""
    inputs, labels = dataset.train_inputs, dataset.train_labels
    if dataset.validation_inputs is not None and dataset.validation_labels is not None:
        judges = ArraySource(dataset.validation_inputs, dataset.validation_labels)
        return ArraySource(inputs, labels), judges
    held = np.zeros(len(labels), bool)
    held[np.random.default_rng(seed).choice(len(labels), len(labels) // 10, replace=False)] = True
    return ArraySource(inputs[~held], labels[~held]), ArraySource(inputs[held], labels[held])


def ask(setting: Setting, seconds: float, seed: int = 0) -> Pilot:
    """Run the pilot for one setting."""
    config = setting.options("crest", seed)
    dataset = load_data(config.dataset, config.data)
    source, judges = split(dataset, seed)

    @functools.cache
    def training(rate: float, steps: int) -> Training:
        return make_training(with_rate(config, rate), dataset, steps)

    def train_at(rate: float, selection: BatchSelector, steps: int, key: jax.Array) -> tuple[Any, Any]:
        init_key, selection_key = jax.random.split(key)
        parts = training(rate, steps)
        state = fit(
            selection,
            parts.train_step,
            parts.init(init_key),
            key=selection_key,
            steps=steps,
            view=lambda state: (state.params, state.model_state),
            losses=lambda metrics: metrics.losses,
        )
        return state.params, state.model_state

    apply_fn = training(config.optim.learning_rate, 1).apply_fn
    evaluation = make_evaluate(apply_fn)
    with tqdm(desc="pilot", unit="trial") as bar:

        def progress(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        return pilot(
            functools.partial(train_at, setting.options("stratified", seed).optim.learning_rate),
            lambda params, model_state: evaluation(params, model_state, judges)["accuracy"],
            apply_fn,
            source,
            steps=config.steps(len(dataset.train_labels)),
            config=lambda steps: config.crest_config(steps, len(source)),
            train_crest=functools.partial(train_at, config.optim.learning_rate),
            seconds=seconds,
            key=jax.random.key(seed),
            progress=progress,
        )


def sentence(found: Pilot) -> str:
    """Say what a pilot found; the first word is the answer."""
    trials = f"{found.seeds} trials of {found.steps} steps"
    if found.steps < found.target:
        trials += f", extrapolated to {found.target}"
    left = ", ".join(f"{value:.2f} (r = {r})" for r, value in found.redundancy.variance.items())
    advice, redundancy = found.advice, found.redundancy
    region = ""
    if advice.region is not None:
        most = advice.region.max_coresets, advice.region.max_interval
        region = " --crest.region.max-coresets {} --crest.region.max-interval {}".format(*most)
    return (
        f"{'Yes' if found.pays else 'No'}: at equal seconds CREST should be "
        f"{found.gain_at_equal_time:+.2f} ± {found.gain_at_equal_time_error:.2f} points from "
        "stratified "
        f"random batches ({trials}; standard error). At equal steps it is "
        f"{found.gain_at_equal_steps:+.2f} ± {found.gain_at_equal_steps_error:.2f} points ahead and "
        "takes "
        f"{found.time_ratio:.2f} times as long; twice the steps are worth "
        f"{found.gain_per_doubling:.2f} points there. A step takes {1e3 * found.costs.step:.1f} ms, "
        f"selecting a coreset {1e3 * found.costs.selection:.1f}, curvature "
        f"{1e3 * found.costs.curvature:.1f}, a check {1e3 * found.costs.check:.1f}. Variance left by "
        f"coresets, over stratified: {left}. Learned: {100 * redundancy.learned:.0f} % of the "
        "examples; "
        f"m picks stand for {100 * redundancy.covered:.0f} % of the spread of 4m. Suggested: "
        f"--crest.subset-size {advice.subset_size}{region}."
    )


def as_values(found: Pilot) -> dict[str, Any]:
    """Return an answer as values of JSON."""
    return found._asdict() | {
        "costs": found.costs._asdict(),
        "advice": dataclasses.asdict(found.advice),
        "redundancy": found.redundancy._asdict(),
    }


def main() -> None:
    """Read the command line, ask, write the file and print the answer."""
    with one_sentence("interrupted; start again."):
        named, args = named_setting(None, SETTINGS)
        default = PilotConfig()
        if named is not None:
            run = dataclasses.replace(named.run, out=default.run.out, run=RunConfig())
            default = PilotConfig(run=run, crest_rate=named.rates.get("crest"))
        config = parse(PilotConfig, default=default, description=__doc__, argv=args)
        with held_file(config.run.out):
            setting = config.asked()
            found = ask(setting, config.seconds, config.run.seed)
            values = {
                **as_values(found),
                "pays": found.pays,
                "run": setting.run.as_json(),
                "seconds": config.seconds,
                "seed": config.run.seed,
                "commit": COMMIT,
                "device": jax.devices()[0].device_kind,
            }
            write_json(config.run.out, values)
    print(f"{sentence(found)}\nAll numbers are in {config.run.out}.")


if __name__ == "__main__":
    main()
