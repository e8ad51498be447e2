"""Score how difficult each training example is, by one full training run of its own.

    python -m experiments.studies.difficulty --dataset fashion_mnist_20k --out runs/difficulty.npz

Writes ``forgetting`` (how often an example went from correct to wrong when it was trained on, Toneva et
al., ICLR 2019; infinite where it was never learned) and ``el2n`` (the norm of its error after a tenth
of the run, Paul et al., NeurIPS 2021), both [n]. ``experiments.report`` reads the file.
"""

import dataclasses
import functools
from pathlib import Path

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


def score(config: TrainConfig) -> dict[str, np.ndarray]:
    """Train on all steps and return the scores of every training example."""
    program = make_program(shared(dataclasses.replace(config, method="full")))
    early = max(1, program.steps // 10)
    norms: list[np.ndarray] = []
    done = 0  # a bar that is switched off does not count
    with tqdm(total=program.steps, desc="full training", unit="step") as bar:

        def on_batch(state: TrainState, batch: Batch) -> None:
            nonlocal done
            del batch
            if done == early:
                norms.append(
                    el2n_scores(program.apply_fn, state.params, state.model_state, program.train)
                )
            done += 1
            bar.update()

        forgetting = forgetting_of_full_run(
            program.apply_fn,
            len(program.train),
            functools.partial(train_network, config),
            jax.random.key(config.seed),
            on_batch,
        )
    return {"forgetting": forgetting, "el2n": norms[0]}


def main() -> None:
    """Read the command line, score, and write the file."""
    with one_sentence("interrupted; start again."):
        config = parse(
            TrainConfig, default=TrainConfig(out=Path("runs/difficulty.npz")), description=__doc__
        )
        config.refuse(
            ("method", "resume", "run", "data.evaluate_on", "budget", "preset", "crest", "baselines"),
            "one full run is scored and nothing else is done",
        )
        if config.out.suffix != ".npz":
            raise UserError(f"--out is {config.out} but must end in .npz; name a file.")
        with held_file(config.out):
            found = score(config)
            np.savez_compressed(config.out, forgetting=found["forgetting"], el2n=found["el2n"])
    print(f"scores in {config.out}")


if __name__ == "__main__":
    main()
