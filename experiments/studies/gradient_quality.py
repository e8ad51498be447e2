"""Measure how far mini-batch gradients are from the gradient of all data, where training uses them.

    python -m experiments.studies.gradient_quality --setting long_mlp --out runs/gradient_quality

A network is trained on stratified batches. At several points the gradients of many mini-batches are
compared with the gradient of all data, all in training mode: dropout is drawn, and BatchNorm takes the
statistics of the (weighted) mini-batch. Coresets are chosen in evaluation mode, at the parameters of
the same step (age 0) or of some steps before. The gradient of all data is the mean over stratified
mini-batches of four times the size that together hold every example.

The *error* is the mean of ``|g - G|^2``, over that of stratified batches of m; *variance* and *bias*
are its parts, the bias over the norm of ``G``. The *equivalent batch* is the size of a stratified batch
with that error, interpolated in logarithms. Intervals are of a bootstrap over mini-batches, which are
drawn independently of each other. Beside them stands how much of the variance of uniform draws is left
by independent draws in proportion to the lengths of examples' gradients, were those of all examples
known: lengths in the last layer, or in all parameters, which leave least.
"""

import dataclasses
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from crest_jax import Batch, Examples, cross_entropy, last_layer_gradients, logit_gradients
from crest_jax.algorithm.config import Picks
from crest_jax.coresets.importance import importance_sample, lengths_of
from crest_jax.coresets.mini_batch import class_side, medoids
from crest_jax.data import make_strata, next_subset, open_stream
from crest_jax.data.classes import Classes, classes_in, one_class
from crest_jax.gradients.chunked import in_chunks
from experiments.config import TrainConfig
from experiments.harness.build import Program, TrainState, make_program, shared
from experiments.harness.cli import UserError, check_setting, one_sentence
from experiments.harness.records import append_line
from experiments.harness.run_folder import COMMIT, held_new_folder
from experiments.models.networks import Norm
from experiments.presets import SETTINGS, changed_in
from experiments.studies.gradient_quality_page import summarise
from experiments.sweep import command_line

SCORED_AT_ONCE = 128
LENGTHS_OF = 1024  # examples
Embedding = str  # "last_layer" or "logits"


class Kind(NamedTuple):
    """A kind of mini-batch; ``size`` and ``subset`` are in mini-batches of m.

    Attributes:
      name: what to call it.
      size: examples of a random one.
      picks: how a coreset is chosen; None: a random mini-batch.
      embedding: by what.
      subset: r, examples that it is chosen from.
      age: steps between its choice and its use.
      stratified: whether it is drawn by class.
    """

    name: str
    size: int = 1
    picks: Picks | None = None
    embedding: Embedding = "last_layer"
    subset: int = 1
    age: int = 0
    stratified: bool = True


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """What to measure; data, network and schedule are those of a setting."""

    setting: str = "long_mlp"
    """A setting of experiments.presets."""
    norm: Norm | None = None
    """Normalisation of a residual network, as --network.norm; None: that of the setting."""
    data_dir: Path | None = None
    """Folder of the data, where the setting's are your own."""
    points: tuple[float, ...] = (0.1, 0.3, 0.6)
    """Shares of the steps after which to measure."""
    count: int = 128
    """Mini-batches of each kind at each point."""
    subsets: tuple[int, ...] = (2, 4)
    """r, examples in the subset that a coreset is chosen from, in mini-batches."""
    ages: tuple[int, ...] = (0, 8)
    """Steps between the choice of a coreset and its use."""
    embeddings: tuple[Embedding, ...] = ("last_layer", "logits")
    """What examples are compared by."""
    picks: tuple[Picks, ...] = ("importance", "medoids")
    """How coresets are chosen."""
    seed: int = 0
    """Seed of the training and of the mini-batches."""
    out: Path = Path("runs/gradient_quality")
    """Folder of the results, which must be new."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_setting(self.setting, SETTINGS)
        if not self.points or not all(0 < point <= 1 for point in self.points) or self.count < 2:
            raise UserError(
                f"--points is {self.points} and --count {self.count} but points must lie in (0, 1] and "
                "the count be at least 2; change them."
            )
        if min(self.subsets, default=0) < 1 or min(self.ages, default=-1) < 0:
            raise UserError(
                f"--subsets is {self.subsets} and --ages {self.ages} but must name sizes of at least 1 "
                "and ages of at least 0; change them."
            )
        if not set(self.embeddings) <= {"last_layer", "logits"} or not self.embeddings:
            raise UserError(
                f"--embeddings is {self.embeddings} but must be of last_layer and logits; choose some."
            )

    def run(self) -> TrainConfig:
        """Return the options of the training run."""
        run = SETTINGS[self.setting].options("stratified", self.seed)
        return changed_in(run, norm=self.norm, data_dir=self.data_dir)

    def kinds(self) -> list[Kind]:
        """Return the kinds of mini-batches."""
        found = [Kind("random, m", stratified=False)]
        found += [Kind(f"stratified, {size}m", size=size) for size in (1, 2, 4)]
        for picks in self.picks:
            for embedding in self.embeddings:
                for subset in self.subsets:
                    for age in self.ages:
                        name = f"{picks}, {embedding.replace('_', ' ')}, r = {subset}m, age {age}"
                        found.append(Kind(name, 1, picks, embedding, subset, age))
        return found


class Errors(NamedTuple):
    """What the gradients of one kind are like.

    Attributes:
      squared: [count], squared distances from the gradient of all data.
      variance: ``E |g - E g|^2``.
      bias: ``|E g - G|``, the root of its square's unbiased estimate; 0 where that is negative.
    """

    squared: np.ndarray
    variance: float
    bias: float


def errors_of(gradients: Any, full: np.ndarray) -> Errors:
    """Measure gradients, an iterable of [p], against that of all data [p].

    >>> found = errors_of(np.random.default_rng(0).normal(size=(500, 4)) + 1, np.ones(4))
    >>> bool(3.5 < found.variance < 4.5), found.bias < 0.2
    (True, True)
    """
    squared: list[float] = []
    total = np.zeros_like(full)
    for gradient in gradients:
        gap = np.asarray(gradient, np.float64) - full
        total += gap
        squared.append(float(gap @ gap))
    count, values = len(squared), np.asarray(squared)
    shift = float(total @ total) / count**2
    variance = (values.mean() - shift) * count / (count - 1)
    return Errors(values, variance, float(np.sqrt(max(0.0, shift - variance / count))))


def left_by_lengths(lengths: np.ndarray, known: np.ndarray, full: float) -> float:
    """Return the variance of independent draws in proportion to lengths, over that of uniform draws.

    An example that is drawn in proportion to ``known`` counts inversely so. The expected square of its
    gradient is then the mean of ``known`` times that of ``lengths^2 / known``.

    Args:
      lengths: [n], of the gradients of examples.
      known: [n], what the draws go by; below a millionth of the largest as if it were that.
      full: length of the gradient of all data.

    >>> lengths = np.array([1.0, 3.0])
    >>> left_by_lengths(lengths, np.ones(2), 1.0), left_by_lengths(lengths, lengths, 1.0)
    (1.0, 0.75)
    """
    known = np.maximum(known, 1e-6 * known.max())
    drawn = known.mean() * (lengths**2 / known).mean()
    return float((drawn - full**2) / ((lengths**2).mean() - full**2))


class Measurement:
    """A network in training, whose mini-batch gradients are measured."""

    def __init__(self, config: QualityConfig) -> None:
        """Build the network and the compiled functions."""
        run = config.run()
        self.config, self.program = config, make_program(shared(run))
        self.size, self.source = run.batch_size, self.program.train
        self.gradient = make_gradient(self.program)

    def drawn(self, key: jax.Array, classes: Classes, size: int) -> jax.Array:
        """Draw rows from a stream of its own: within one stream draws are not independent."""
        strata = make_strata(classes.codes, classes.number)
        return next_subset(open_stream(key, classes.number), strata, size)[1]

    def chooser(self, kind: Kind) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """Return the compiled choice of a coreset: (key, params, model_state, examples) -> ..."""
        if kind.embedding == "last_layer":
            embed = last_layer_gradients(self.program.features_fn)
        else:
            embed = logit_gradients(self.program.apply_fn)
        classes = classes_in(self.source)
        share = float(np.bincount(classes.codes).max() / len(classes.codes))
        side = class_side(share, kind.subset * self.size)

        @jax.jit
        def choose(key: jax.Array, params: Any, model_state: Any, examples: Examples) -> Any:
            embeddings, _ = in_chunks(embed, params, model_state, examples, SCORED_AT_ONCE)
            labels = examples.labels
            if kind.picks == "importance":
                return importance_sample(key, embeddings, labels, size=self.size)
            given = {"size": self.size, "num_classes": classes.number, "side": side}
            coreset = medoids(embeddings, labels, **given)
            return coreset.indices, coreset.weights

        return choose

    def gradients(self, kind: Kind, key: jax.Array, state: TrainState, before: TrainState) -> Any:
        """Yield gradients of mini-batches of a kind, chosen at ``before``."""
        choose = None if kind.picks is None else self.chooser(kind)
        classes = classes_in(self.source) if kind.stratified else one_class(len(self.source))
        each = kind.size * self.size if choose is None else kind.subset * self.size
        for own in tqdm(jax.random.split(key, self.config.count), desc=kind.name, leave=False):
            draw_key, choice_key, step_key = jax.random.split(own, 3)
            rows = self.drawn(draw_key, classes, each)
            weights = jnp.ones(each)
            if choose is not None:
                given = choice_key, before.params, before.model_state, self.source.take(rows)
                picks, weights = choose(*given)
                rows = rows[picks]
            batch = Batch(*self.source.take(rows), weights, rows)
            yield self.gradient(state, step_key, batch)

    def full(self, key: jax.Array, state: TrainState) -> np.ndarray:
        """Return the gradient of all data, by mini-batches of 4m that hold every example once."""
        count, each = len(self.source), 4 * self.size
        classes = classes_in(self.source)
        strata = make_strata(classes.codes, classes.number)
        draw_key, step_key = jax.random.split(key)
        stream, total = open_stream(draw_key, classes.number), np.zeros(())
        number = max(1, count // each)
        for own in tqdm(jax.random.split(step_key, number), desc="all data", leave=False):
            stream, rows = next_subset(stream, strata, each)
            batch = Batch(*self.source.take(rows), jnp.ones(each), rows)
            total = total + np.asarray(self.gradient(state, own, batch), np.float64)
        return total / number

    def lengths(self, key: jax.Array, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        """Return lengths of examples' gradients, of random rows: in all parameters, in the last layer.

        In evaluation mode: with batch statistics an example has no gradient of its own.
        """
        examples = self.source.take(self.drawn(key, one_class(len(self.source)), LENGTHS_OF))
        apply_fn, state_in = self.program.apply_fn, (state.params, state.model_state)
        last, _ = in_chunks(
            last_layer_gradients(self.program.features_fn), *state_in, examples, SCORED_AT_ONCE
        )

        def length(one: Examples) -> jax.Array:
            def loss(params: Any) -> jax.Array:
                given = jax.tree.map(lambda leaf: leaf[None], one)
                logits, _ = apply_fn(params, state.model_state, given.inputs, train=False, rng=None)
                return cross_entropy(logits, given.labels)[0]

            return optax.tree.norm(jax.grad(loss)(state.params))

        own = jax.jit(lambda rows: jax.lax.map(length, rows, batch_size=32))(examples)
        return np.asarray(own, np.float64), np.asarray(lengths_of(last), np.float64)


def make_gradient(program: Program) -> Callable[[TrainState, jax.Array, Batch], jax.Array]:
    """Return the gradient of a training step, as one vector, in training mode."""

    @jax.jit
    def gradient(state: TrainState, key: jax.Array, batch: Batch) -> jax.Array:
        return ravel_pytree(program.gradient(state._replace(key=key), batch))[0]

    return gradient


def measure(config: QualityConfig) -> list[dict[str, Any]]:
    """Train, and measure at every point."""
    own = Measurement(config)
    program, kinds = own.program, config.kinds()
    steps = program.steps
    init_key, train_key, measure_key = jax.random.split(jax.random.key(config.seed), 3)
    state = program.init(init_key)
    selected = program.selection.init(train_key, state.params, state.model_state)
    points = sorted({max(max(config.ages) + 1, round(point * steps)) for point in config.points})
    recent: deque[TrainState] = deque(maxlen=max(config.ages) + 1)
    results = []
    for step in tqdm(range(1, points[-1] + 1), desc="training", unit="step"):
        recent.append(state)
        selected, batch = program.selection.next_batch(selected)
        state, _ = program.train_step(state, batch)
        if step not in points:
            continue
        states = [*recent, state]
        full = own.full(jax.random.fold_in(measure_key, step), state)
        lengths, last = own.lengths(jax.random.fold_in(measure_key, steps + step), state)
        norm = float(np.linalg.norm(full))
        left = {
            "last_layer": left_by_lengths(lengths, last, norm),
            "all": left_by_lengths(lengths, lengths, norm),
        }
        for index, kind in enumerate(kinds):
            key = jax.random.fold_in(jax.random.fold_in(measure_key, step), index + 1)
            before = states[-1 - kind.age]
            found = errors_of(own.gradients(kind, key, state, before), full)
            results.append(
                {
                    "step": step,
                    "kind": kind._asdict(),
                    "squared": found.squared.tolist(),
                    "variance": found.variance,
                    "bias": found.bias,
                    "full_norm": norm,
                    "left_by_lengths": left,
                }
            )
    return results


def main() -> None:
    """Measure, then write and print the tables."""
    with one_sentence("interrupted before the measurement was complete; run the command again."):
        config = tyro.cli(QualityConfig, description=__doc__)
        with held_new_folder(config.out):
            results = measure(config)
            for row in results:
                append_line(config.out / "gradient_quality.jsonl", row)
            text = summarise(results)
            made = f"`{command_line(__file__)}` at commit {COMMIT}, {config.count} mini-batches each"
            (config.out / "summary.md").write_text(f"{made}\n\n{text}\n", encoding="utf-8")
            print(text)


if __name__ == "__main__":
    main()
