"""Score how difficult each training example is, by one full training run of its own.

    python -m experiments.difficulty --dataset fashion_mnist_20k --out runs/difficulty.npz

Writes ``forgetting`` (how often an example went from correct to wrong when it was trained on, Toneva et
al., ICLR 2019; infinite where it was never learned) and ``el2n`` (the norm of its error after a tenth
of the run, Paul et al., NeurIPS 2021), both [n]. ``experiments.report`` reads the file.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax import (
    Batch,
    el2n_scores,
    forgetting_scores,
    init_forgetting,
    observe_predictions,
)
from experiments.config import TrainConfig, UserError
from experiments.program import TrainState, make_program, shared, train_network
from experiments.run_folder import writable_folder
from experiments.train import one_sentence


def score(config: TrainConfig) -> dict[str, np.ndarray]:
    """Train on all steps and return the scores of every training example."""
    program = make_program(shared(dataclasses.replace(config, method="full")))
    early = max(1, program.steps // 10)
    seen = init_forgetting(len(program.train))
    norms: list[np.ndarray] = []

    @jax.jit
    def right(state: TrainState, batch: Batch) -> jax.Array:
        inputs, model_state = batch.inputs, state.model_state
        logits, _ = program.apply_fn(state.params, model_state, inputs, train=False, rng=None)
        return logits.argmax(axis=1) == batch.labels

    with tqdm(total=program.steps, desc="full training", unit="step") as bar:

        def on_batch(state: Any, batch: Batch) -> None:
            nonlocal seen
            if bar.n == early:
                norms.append(
                    el2n_scores(program.apply_fn, state.params, state.model_state, program.train)
                )
            seen = observe_predictions(seen, np.asarray(batch.rows), np.asarray(right(state, batch)))
            bar.update()

        train_network(config, "full", jax.random.key(config.seed), on_batch)
    return {"forgetting": forgetting_scores(seen), "el2n": norms[0]}


def main() -> None:
    """Read the command line, score, and write the file."""
    with one_sentence("interrupted; start again."):
        config = tyro.cli(
            TrainConfig, default=TrainConfig(out=Path("runs/difficulty.npz")), description=__doc__
        )
        config.refuse(
            ("method", "resume", "tensorboard", "evaluations", "checkpoints", "evaluate_on", "budget"),
            "one full run is scored and nothing else is done",
        )
        if config.out.suffix != ".npz":
            raise UserError(f"--out is {config.out} but must end in .npz; name a file.")
        writable_folder(config.out.parent)
        found = score(config)
        np.savez_compressed(config.out, forgetting=found["forgetting"], el2n=found["el2n"])
    print(f"scores in {config.out}")


if __name__ == "__main__":
    main()
