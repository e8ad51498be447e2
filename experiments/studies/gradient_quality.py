"""Measure bias and variance of coreset gradients through training, beside random batches.

    python -m experiments.studies.gradient_quality --out runs/gradient_quality

One network is trained on stratified random batches; at several points of its training the gradient of
the whole data is compared with the gradients of many mini-batches of the same size: random ones,
stratified ones, and mini-batch coresets selected out of stratified random subsets. All gradients are
taken in evaluation mode, where the gradient of a set is the mean of its examples' gradients.

*Variance* is ``E |g - E g|^2``. *Bias* is ``|E g - G|`` over the norm of the full gradient ``G``; of it
the table gives an estimate (the square root of ``|mean - G|^2 - variance / count``, which is unbiased
before the root; 0 where that is negative) and an upper bound: ``|mean - G|`` plus the 95 % quantile of
``|mean* - mean|`` over bootstrap samples, by the triangle inequality. Mini-batches are drawn
independently of each other.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from crest_jax import ArraySource, Examples, cross_entropy, logit_gradients
from crest_jax.coresets.mini_batch import medoids
from crest_jax.data import make_strata, next_subset, open_stream
from crest_jax.data.classes import classes_in, one_class
from crest_jax.data.sources import padded_chunks
from crest_jax.gradients import weighted_mean
from experiments.config import TrainConfig
from experiments.harness.build import Program, make_program, shared
from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import COMMIT, held_new_folder
from experiments.sweep import command_line

Kind = Literal["random", "stratified", "coreset"]


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """What to measure; the data, network and schedule are those of a training run."""

    points: int = 5
    """Points of training at which to measure, evenly spaced, the last at its end."""
    count: int = 256
    """Mini-batches of each kind at each point."""
    subset_size: int = 256
    """r, examples in the random subset that a coreset is selected from."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(method="stratified", out=Path("runs/gradient_quality"))
    )
    """Options of the training run."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unused = ("resume", "run", "data.evaluate_on", "preset", "crest", "baselines")
        self.run.refuse(unused, "nothing is evaluated or saved while the network trains")
        if self.points < 1 or self.count < 2:
            raise UserError(
                f"--points is {self.points} and --count {self.count} but they must be at least 1 "
                "and 2; raise them."
            )


def bias_and_variance(
    gradients: np.ndarray, full: np.ndarray, rng: np.random.Generator, resamples: int = 400
) -> dict[str, float]:
    """Return variance, estimated bias and bound on the bias of gradients [k, p] of ``full`` [p].

    The biases are relative to ``|full|``.

    >>> rng = np.random.default_rng(0)
    >>> numbers = bias_and_variance(rng.normal(size=(500, 4)) + 1, np.ones(4), rng)
    >>> 3.5 < numbers["variance"] < 4.5, numbers["bias_bound"] < 0.15
    (True, True)
    """
    count = len(gradients)
    mean = gradients.mean(0)
    centred = gradients - mean
    variance = float(np.sum(centred**2) / (count - 1))
    # |mean* - mean|^2 is a quadratic form in the resampling frequencies.
    gram = centred @ centred.T
    draws = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
    spread = np.sqrt(np.maximum(np.einsum("bi,ij,bj->b", draws, gram, draws, optimize=True), 0))
    norm = float(np.linalg.norm(full))
    gap = float(np.linalg.norm(mean - full))
    return {
        "variance": variance,
        "bias": float(np.sqrt(max(0.0, gap**2 - variance / count))) / norm,
        "bias_bound": (gap + float(np.quantile(spread, 0.95))) / norm,
        "full_norm": norm,
    }


def make_gradient(program: Program) -> Callable[..., jax.Array]:
    """Return the jitted gradient, as one vector, of a weighted mean loss in evaluation mode."""

    @jax.jit
    def gradient(params: Any, model_state: Any, examples: Examples, weights: jax.Array) -> jax.Array:
        def loss(params: Any) -> jax.Array:
            logits, _ = program.apply_fn(params, model_state, examples.inputs, train=False, rng=None)
            return weighted_mean(cross_entropy(logits, examples.labels), weights)

        return ravel_pytree(jax.grad(loss)(params))[0]

    return gradient


def full_gradient(
    gradient: Callable[..., jax.Array], source: ArraySource, params: Any, model_state: Any
) -> np.ndarray:
    """Return the gradient of the mean loss of all examples, summed in float64."""
    total = np.zeros(())
    for positions, mask in padded_chunks(len(source), 500):
        examples = source.take(jnp.asarray(positions))
        part = gradient(params, model_state, examples, jnp.asarray(mask, jnp.float32))
        total = total + mask.sum() * np.asarray(part, np.float64)
    return total / len(source)


def batch_gradients(
    kind: Kind,
    key: jax.Array,
    gradient: Callable[..., jax.Array],
    select: Callable[..., tuple[jax.Array, jax.Array]],
    config: QualityConfig,
    source: ArraySource,
    params: Any,
    model_state: Any,
) -> np.ndarray:
    """Return the gradients [count, p] of mini-batches of one kind."""
    batch_size, subset_size = config.run.batch_size, config.subset_size
    classes = one_class(len(source)) if kind == "random" else classes_in(source)
    number = classes.number
    strata = make_strata(classes.codes, number)
    size = subset_size if kind == "coreset" else batch_size
    found = []
    for index in tqdm(range(config.count), desc=kind, leave=False):
        # A stream of its own for each draw: within one stream, draws are not independent.
        stream = open_stream(jax.random.fold_in(key, index), number)
        _, rows = next_subset(stream, strata, size)
        weights = jnp.ones(batch_size)
        if kind == "coreset":
            rows, weights = select(params, model_state, source.take(rows), rows)
        found.append(np.asarray(gradient(params, model_state, source.take(rows), weights)))
    return np.stack(found).astype(np.float64)


def measure(config: QualityConfig) -> list[dict[str, Any]]:
    """Train, and measure at every point."""
    program = make_program(shared(config.run))
    source, steps = program.train, program.steps
    gradient = make_gradient(program)
    embed = logit_gradients(program.apply_fn)

    @jax.jit
    def select(params: Any, model_state: Any, examples: Examples, rows: jax.Array) -> Any:
        embeddings, _ = embed(params, model_state, examples)
        coreset = medoids(
            embeddings,
            examples.labels,
            size=config.run.batch_size,
            num_classes=len(program.class_names),
        )
        return rows[coreset.indices], coreset.weights

    init_key, train_key, measure_key = jax.random.split(jax.random.key(config.run.seed), 3)
    state = program.init(init_key)
    selected = program.selection.init(train_key, state.params, state.model_state)
    points = {round(steps * (i + 1) / config.points) for i in range(config.points)} - {0}
    rng = np.random.default_rng(config.run.seed)
    results = []
    for step in tqdm(range(1, steps + 1), desc="training", unit="step"):
        selected, _ = program.selection.refresh(selected, state.params, state.model_state)
        selected, batch = program.selection.next_batch(selected)
        state, _ = program.train_step(state, batch)
        if step not in points:
            continue
        full = full_gradient(gradient, source, state.params, state.model_state)
        for index, kind in enumerate(get_args(Kind)):
            key = jax.random.fold_in(jax.random.fold_in(measure_key, step), index)
            gradients = batch_gradients(
                kind, key, gradient, select, config, source, state.params, state.model_state
            )
            numbers = bias_and_variance(gradients, full, rng)
            results.append({"step": step, "kind": kind, "count": config.count, **numbers})
    return results


def summarise(results: list[dict[str, Any]]) -> str:
    """Return the table: variance over that of random batches, and the bias."""
    header = [
        "step",
        "batches",
        "variance / random",
        "bias / full",
        "95 % bound",
        "full gradient's norm",
    ]
    random = {row["step"]: row["variance"] for row in results if row["kind"] == "random"}
    rows = [
        [
            str(row["step"]),
            row["kind"],
            f"{row['variance'] / random[row['step']]:.3f}",
            f"{row['bias']:.3f}",
            f"{row['bias_bound']:.3f}",
            f"{row['full_norm']:.3f}",
        ]
        for row in results
    ]
    return table(header, rows)


def main() -> None:
    """Measure, then write and print the table."""
    with one_sentence("interrupted before the measurement was complete; run the command again."):
        config = parse(QualityConfig, default=QualityConfig(), description=__doc__)
        with held_new_folder(config.run.out):
            results = measure(config)
            for row in results:
                append_line(config.run.out / "gradient_quality.jsonl", row)
            text = summarise(results)
            made = f"`{command_line(__file__)}` at commit {COMMIT}"
            (config.run.out / "gradient_quality.md").write_text(f"{made}\n\n{text}\n", encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
