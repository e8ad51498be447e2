"""Score how difficult each training example is, by one full training run of its own.

    python -m experiments.studies.difficulty --dataset fashion_mnist_20k --out runs/difficulty.npz

Writes ``forgetting`` (how often an example went from correct to wrong when it was trained on, Toneva et
al., ICLR 2019; infinite where it was never learned) and ``el2n`` (the norm of its error after a tenth
of the run, Paul et al., NeurIPS 2021), both [n]. ``--scores el2n`` alone ends after that tenth.
``experiments.report`` and ``experiments.studies.picks`` read the file.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tqdm import tqdm

from crest_jax import Batch
from crest_jax.baselines import el2n_scores
from experiments.config import TrainConfig
from experiments.harness.build import TrainState, make_program, shared, train_network
from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.run_folder import held_file
from experiments.harness.selectors import forgetting_of_full_run


@dataclasses.dataclass(frozen=True)
class DifficultyConfig(TrainConfig):
    """The run that scores."""

    scores: tuple[Literal["forgetting", "el2n"], ...] = ("forgetting", "el2n")
    """Which scores; EL2N alone takes a tenth of the steps."""
    out: Path = Path("runs/difficulty.npz")
    """File of the scores."""


def score(config: DifficultyConfig) -> dict[str, np.ndarray]:
    """Train, and return the scores of every training example."""
    program = make_program(shared(dataclasses.replace(config, method="full")))
    early = max(1, program.steps // 10)
    key = jax.random.key(config.seed)
    found: dict[str, np.ndarray] = {}
    done = 0  # a bar that is switched off does not count

    def el2n(state: TrainState) -> np.ndarray:
        return el2n_scores(program.apply_fn, state.params, state.model_state, program.train)

    def on_batch(state: TrainState, batch: Batch) -> None:
        nonlocal done
        del batch
        if done == early and "el2n" in config.scores:
            found["el2n"] = el2n(state)
        done += 1
        bar.update()

    if "forgetting" not in config.scores:
        own = dataclasses.replace(config, budget=early / program.steps)
        with tqdm(total=early, desc="the first tenth of full training", unit="step") as bar:
            found["el2n"] = el2n(train_network(own, "full_cut_off", key, on_batch))
        return found
    with tqdm(total=program.steps, desc="full training", unit="step") as bar:
        train = functools.partial(train_network, config)
        found["forgetting"] = forgetting_of_full_run(
            program.apply_fn, len(program.train), train, key, on_batch
        )
    return found


def main() -> None:
    """Read the command line, score, and write the file."""
    with one_sentence("interrupted; start again."):
        config = parse(DifficultyConfig, default=DifficultyConfig(), description=__doc__)
        config.refuse(
            ("method", "resume", "run", "data.evaluate_on", "budget", "preset", "crest", "baselines"),
            "one full run is scored and nothing else is done",
        )
        if config.out.suffix != ".npz":
            raise UserError(f"--out is {config.out} but must end in .npz; name a file.")
        if not config.scores:
            raise UserError("--scores is empty but must name forgetting, el2n or both; leave it out.")
        with held_file(config.out):
            np.savez_compressed(config.out, **score(config))  # type: ignore[arg-type]
    print(f"scores in {config.out}")


if __name__ == "__main__":
    main()
