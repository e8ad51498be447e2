"""What curvature costs, in time and memory, against the share of the parameters that it is taken of.

    python -m experiments.benchmarks.curvature --dataset rotten_tomatoes --model minilm \\
        --batch-size 32 --of "classifier" "classifier|layer_5" --out runs/curvature

For each regular expression of ``--of``, and for all parameters, the gradient and the Hessian's diagonal
are taken on a mini-batch of training examples at the network's first parameters, beside a training
step, all in turn, several rounds; compilation is left out. Writes ``curvature.jsonl`` and
``curvature.md``.
"""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax import Batch, cross_entropy, stratified_batches
from crest_jax.gradients import draw_probes, gradient_and_diagonal, weighted_mean
from crest_jax.gradients.curvature import covered
from experiments.config import TrainConfig
from experiments.harness.build import load_sources, make_training
from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import COMMIT, held_new_folder
from experiments.sweep import made_by

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class CurvatureConfig:
    """What to time; data and network are those of a training run."""

    of: tuple[str, ...] = ()
    """Regular expressions, as for --crest.curvature-of; all parameters come last in any case."""
    rounds: int = 10
    """Times that each is run; medians are reported."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(out=Path("runs/curvature"))
    )
    """Options of the training run; --out is the folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unused = (
            "resume", "run", "data.evaluate_on", "method", "budget", "epochs", "preset", "crest",
            "baselines",
        )  # fmt: skip
        self.run.refuse(unused, "nothing is trained")
        if self.rounds < 1:
            raise UserError(f"--rounds is {self.rounds} but must be at least 1; 10 is usual.")
        for pattern in self.of:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"--of is {pattern!r} but must be a regular expression ({error}); correct it."
                ) from error


def count(params: Any) -> int:
    """Return the number of parameters.

    >>> count({"a": np.zeros((2, 3)), "b": None})
    6
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def held_bytes(params: Any, part: Any) -> int:
    """Return the bytes that CREST keeps between steps, with the smoothing "signed".

    They are the anchor and the gradient of all parameters, and the curvature and its mean of the part.
    """
    whole, some = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (params, part))
    return 2 * whole + 2 * some


def measure(config: CurvatureConfig) -> list[dict[str, Any]]:
    """Time everything in turn; return one line for the training step and for each part."""
    run = config.run
    dataset, train, _ = load_sources(run)
    training = make_training(run, dataset, 1000)
    state = training.init(jax.random.key(run.seed))
    selection = stratified_batches(train, run.batch_size)
    _, batch = selection.next_batch(selection.init(jax.random.key(run.seed + 1), None, None))
    params, model_state = state.params, state.model_state
    for pattern in config.of:
        covered(params, pattern)  # refuses what is found nowhere, before any work

    @jax.jit
    def curvature(probes: Any, params: Any, batch: Batch) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = training.apply_fn(params, model_state, batch.inputs, train=False, rng=None)
            return weighted_mean(cross_entropy(logits, batch.labels), batch.weights)

        return gradient_and_diagonal(probes, loss, params)

    lines: list[dict[str, Any]] = []
    calls: list[Callable[[], Any]] = []

    def add(what: str, part: Any, function: Any, *args: Any) -> None:
        start = time.perf_counter()
        compiled = function.lower(*args).compile()
        memory = compiled.memory_analysis()
        lines.append(
            {
                "what": what,
                "parameters": count(part),
                "held_bytes": 0 if part is None else held_bytes(params, part),
                "temporary_bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
                "compile_seconds": time.perf_counter() - start,
                "seconds": [],
            }
        )
        calls.append(functools.partial(compiled, *args))

    add("training step", None, training.train_step, state, batch)
    for pattern in tqdm((*config.of, None), desc="compiling", unit="part"):
        part = covered(params, pattern)
        probes = draw_probes(jax.random.key(run.seed + 2), part, 1)
        add(pattern or "all parameters", part, curvature, probes, params, batch)
    for call in calls:
        jax.block_until_ready(call())
    for _ in tqdm(range(config.rounds), desc="timing", unit="round"):
        for line, call in zip(lines, calls, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            line["seconds"].append(time.perf_counter() - start)
    shape = list(np.shape(batch.inputs))
    made = {"commit": COMMIT, "device": jax.devices()[0].device_kind, "inputs": shape}
    return [line | made for line in lines]


def as_table(lines: list[dict[str, Any]]) -> str:
    """Return the table of ``measure``'s lines."""
    step = np.median(lines[0]["seconds"])
    rows = []
    for line in lines:
        middle = np.median(line["seconds"])
        rows.append(
            [
                line["what"],
                f"{line['parameters']:,}" if line["parameters"] else "-",
                f"{1e3 * middle:.1f}",
                f"{middle / step:.2f}",
                f"{line['temporary_bytes'] / MIB:.0f}",
                f"{line['held_bytes'] / MIB:.0f}" if line["held_bytes"] else "-",
            ]
        )
    header = ["curvature of", "parameters", "median ms", "steps", "working MiB", "held MiB"]
    return table(header, rows)


EXPLANATION = """
One gradient and one Hutchinson estimate of the Hessian's diagonal on a mini-batch. "working": the
compiled program's temporaries and outputs; "held": what CREST keeps between steps (the anchor and the
gradient of all parameters, the curvature and its mean of the part).
"""


def main() -> None:
    """Read the command line, measure, and write the files."""
    with one_sentence("interrupted; start again."):
        config = parse(CurvatureConfig, default=CurvatureConfig(), description=__doc__)
        out = config.run.out
        with held_new_folder(out):
            lines = measure(config)
            for line in lines:
                append_line(out / "curvature.jsonl", line)
            made = made_by(__file__, None, lines, 1)
            inputs = " x ".join(map(str, lines[0]["inputs"]))
            text = f"{made}; inputs {inputs}\n\n{as_table(lines)}\n{EXPLANATION}"
            (out / "curvature.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
