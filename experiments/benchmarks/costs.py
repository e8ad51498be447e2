"""What each part of CREST costs on this device, in training steps, and what cheaper forms would cost.

    python -m experiments.benchmarks.costs --model resnet8 --out runs/costs

One network is trained a little on stratified batches; then every candidate is timed on it, all in
turn, several rounds, so that they see the same machine; compilation is left out. A second table has the
variance of the mean embedding that coresets of each kind leave, over that of stratified batches. Writes
``costs.jsonl`` and ``costs.md``.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax import (
    ArraySource,
    Batch,
    EmbedFn,
    Examples,
    cross_entropy,
    logit_gradients,
    stratified_batches,
)
from crest_jax.coresets.mini_batch import class_side, medoids
from crest_jax.data import make_strata, next_subset, open_stream
from crest_jax.flax import from_linen
from crest_jax.gradients import draw_probes, gradient_and_diagonal, weighted_mean
from crest_jax.gradients.chunked import in_chunks
from experiments.config import TrainConfig
from experiments.harness.build import Training, load_data, load_sources, make_training
from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import COMMIT, held_new_folder
from experiments.models import build as build_network
from experiments.sweep import command_line

SCANNED = 8  # steps compiled into one call


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What to time; data, network and rate are those of a training run."""

    rounds: int = 20
    """Times that each candidate is run; medians are reported."""
    warm_steps: int = 100
    """Training steps before anything is timed."""
    probe_size: int = 256
    """Examples on which the loss is checked."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: TrainConfig(method="stratified", out=Path("runs/costs"))
    )
    """Options of the training run; --out is the folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        unused = ("resume", "run", "data.evaluate_on", "preset", "crest", "baselines")
        self.run.refuse(unused, "nothing is evaluated or saved")
        if self.rounds < 1 or self.warm_steps < 1:
            raise UserError(
                f"--rounds is {self.rounds} and --warm-steps {self.warm_steps} but both must be at "
                "least 1; raise them."
            )


def halved(embed_fn: EmbedFn) -> EmbedFn:
    """Score images of half the side: every second pixel of every second row."""

    def embed(params: Any, model_state: Any, examples: Examples) -> Any:
        small = Examples(examples.inputs[:, ::2, ::2], examples.labels)
        return embed_fn(params, model_state, small)

    return embed


def refit(weights: jax.Array, picked: jax.Array, target: jax.Array) -> jax.Array:
    """Return the non-negative weights nearest to ``weights`` [m] whose mean embedding is ``target``.

    ``picked`` is [m, d], ``target`` [d]. Alternates the projection onto the equations (and the sum of
    the weights) with that onto the non-negative weights.
    """
    rows = jnp.concatenate([picked, jnp.ones((len(picked), 1))], axis=1).T  # [d + 1, m]
    total = jnp.sum(weights)
    wanted = jnp.concatenate([total * target, total[None]])
    inverse = jnp.linalg.pinv(rows @ rows.T, rtol=1e-5, hermitian=True)

    def project(_: Any, w: jax.Array) -> jax.Array:
        return jnp.maximum(w - rows.T @ (inverse @ (rows @ w - wanted)), 0.0)

    return jax.lax.fori_loop(0, 20, project, weights)


class Bench:
    """The network, the data and the candidates."""

    def __init__(self, config: CostConfig) -> None:
        """Train the network a little."""
        self.run = run = config.run
        self.dataset = load_data(run.dataset, run.data)
        self.source = load_sources(run)[1]
        self.training: Training = make_training(run, self.dataset, max(1000, 10 * config.warm_steps))
        self.size, self.classes = run.batch_size, self.dataset.num_classes
        self.probe = config.probe_size
        selection = stratified_batches(self.source, self.size)
        self.state = self.training.init(jax.random.key(run.seed))
        chosen = selection.init(jax.random.key(run.seed + 1), None, None)
        self.batches: list[Batch] = []
        for _ in tqdm(range(config.warm_steps), desc="training", unit="step"):
            chosen, batch = selection.next_batch(chosen)
            self.state, _ = self.training.train_step(self.state, batch)
            self.batches = [*self.batches[-(SCANNED - 1) :], batch]
        self.strata = make_strata(self.source.labels, self.classes)
        self.stream = open_stream(jax.random.key(2), self.classes)
        self.embed_fn = logit_gradients(self.training.apply_fn)

    def draw(self, size: int) -> Examples:
        """Draw a stratified subset."""
        self.stream, rows = next_subset(self.stream, self.strata, size)
        return self.source.take(rows)

    def scoring(self, embed_fn: EmbedFn, size: int, chunk: int) -> Callable[[], Any]:
        """Return a call that scores one subset."""
        examples = self.draw(size)
        score = jax.jit(lambda p, s, e: in_chunks(embed_fn, p, s, e, chunk))
        return lambda: score(self.state.params, self.state.model_state, examples)

    def half_precision(self) -> EmbedFn:
        """Return the embedding of the same network, computed in bfloat16."""
        data = self.dataset
        network = build_network(
            self.run.model, self.classes, width=self.run.network.width,
            input_shape=data.train_inputs.shape[1:], mean=data.mean, std=data.std, dtype=jnp.bfloat16,
        )  # fmt: skip
        return logit_gradients(from_linen(network))

    def candidates(self) -> dict[str, Callable[[], Any]]:
        """Return everything that is timed."""
        m, state = self.size, self.state
        params, model_state = state.params, state.model_state
        found: dict[str, Callable[[], Any]] = {
            "training step": lambda: self.training.train_step(state, self.batches[-1])
        }
        step = self.training.train_step
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *self.batches)
        scan = jax.jit(lambda s, b: jax.lax.scan(step, s, b))

        def steps(block: bool) -> Any:
            now = state
            for batch in self.batches:
                now, _ = step(now, batch)
                if block:
                    jax.block_until_ready(now)
            return now

        found[f"{SCANNED} steps, waiting after each"] = lambda: steps(True)
        found[f"{SCANNED} steps, dispatched ahead"] = lambda: steps(False)
        found[f"{SCANNED} steps in one scan"] = lambda: scan(state, stacked)
        for factor in (1, 2, 4, 8):
            found[f"scoring r = {factor}m, chunks of 128"] = self.scoring(
                self.embed_fn, factor * m, 128
            )
        found["scoring r = 4m, one batch"] = self.scoring(self.embed_fn, 4 * m, 4 * m)
        found["scoring r = 4m, bfloat16"] = self.scoring(self.half_precision(), 4 * m, 128)
        if self.dataset.train_inputs.ndim == 4 and self.run.model != "mlp":
            found["scoring r = 4m, half resolution"] = self.scoring(halved(self.embed_fn), 4 * m, 128)
        share = float(np.bincount(self.source.labels).max() / len(self.source))
        for factor in (2, 4):
            examples = self.draw(factor * m)
            points, _ = jax.jit(self.embed_fn)(params, model_state, examples)
            for name, side in (("all pairs", None), ("by class", class_side(share, factor * m))):
                found[f"medoids of r = {factor}m, {name}"] = functools.partial(
                    medoids, points, examples.labels, size=m, num_classes=self.classes, side=side
                )
        for rows in (m, m // 2, m // 4):
            found[f"gradient and curvature on {rows} rows"] = self._curvature(rows)
        for rows in (self.probe, self.probe // 2):
            found[f"check on {rows} rows"] = self._check(rows)
        return found

    def _curvature(self, rows: int) -> Callable[[], Any]:
        examples, apply_fn = self.draw(rows), self.training.apply_fn
        params, model_state = self.state.params, self.state.model_state
        probes = draw_probes(jax.random.key(3), params, 1)

        @jax.jit
        def curvature(params: Any, examples: Examples) -> Any:
            def loss(params: Any) -> jax.Array:
                logits, _ = apply_fn(params, model_state, examples.inputs, train=False, rng=None)
                return jnp.mean(cross_entropy(logits, examples.labels))

            return gradient_and_diagonal(probes, loss, params)

        return lambda: curvature(params, examples)

    def _check(self, rows: int) -> Callable[[], Any]:
        examples, apply_fn = self.draw(rows), self.training.apply_fn

        @jax.jit
        def check(params: Any, model_state: Any, examples: Examples) -> Any:
            logits, _ = apply_fn(params, model_state, examples.inputs, train=False, rng=None)
            return weighted_mean(cross_entropy(logits, examples.labels), jnp.ones(rows))

        return lambda: check(self.state.params, self.state.model_state, examples)

    def variance(self, draws: int = 200) -> dict[str, float]:
        """Return the variance of the mean embedding by kind of coreset, over stratified batches'."""
        m = self.size
        pool = self.draw(min(8192, len(self.source)))
        inner = ArraySource(np.asarray(pool.inputs), np.asarray(pool.labels))
        whole = jax.jit(lambda p, s, e: in_chunks(self.embed_fn, p, s, e, 512)[0])
        exact = whole(self.state.params, self.state.model_state, pool)
        kinds: dict[str, tuple[int, Any, bool]] = {
            f"r = {factor}m": (factor * m, exact, False) for factor in (2, 4, 8)
        }
        kinds["r = 4m, weights re-fitted"] = (4 * m, exact, True)
        forms = {"bfloat16": self.half_precision()}
        if self.dataset.train_inputs.ndim == 4 and self.run.model != "mlp":
            forms["half resolution"] = halved(self.embed_fn)
        for name, embed_fn in forms.items():
            score = jax.jit(lambda p, s, e, f=embed_fn: in_chunks(f, p, s, e, 512)[0])
            kinds[f"r = 4m, {name}"] = (
                4 * m, score(self.state.params, self.state.model_state, pool), False,
            )  # fmt: skip
        strata, centre = make_strata(inner.labels, self.classes), exact.mean(0)
        labels = jnp.asarray(inner.labels)

        def spread(size: int, seen: Any, again: bool, coresets: bool) -> float:
            stream, squares = open_stream(jax.random.key(4), self.classes), []
            for _ in range(draws):
                stream, rows = next_subset(stream, strata, size)
                mean = exact[rows].mean(0)
                if coresets:
                    chosen = medoids(seen[rows], labels[rows], size=m, num_classes=self.classes)
                    weights, picked = chosen.weights, rows[chosen.indices]
                    if again:
                        weights = jax.jit(refit)(weights, seen[picked], seen[rows].mean(0))
                    mean = weights @ exact[picked] / jnp.sum(weights)
                squares.append(float(jnp.sum(jnp.square(mean - centre))))
            return float(np.mean(squares))

        base = spread(m, exact, False, False)
        return {
            name: spread(size, seen, again, True) / base
            for name, (size, seen, again) in tqdm(kinds.items(), desc="variance", unit="kind")
        }


def measure(config: CostConfig) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Time all candidates in turn and return seconds of each round, and the variances."""
    bench = Bench(config)
    candidates = bench.candidates()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for function in tqdm(candidates.values(), desc="compiling", unit="candidate"):
        jax.block_until_ready(function())
    for _ in tqdm(range(config.rounds), desc="timing", unit="round"):
        for name, function in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    lines = [{"what": name, "seconds": values} for name, values in seconds.items()]
    return lines, bench.variance()


def main() -> None:
    """Read the command line, measure, and write the files."""
    with one_sentence("interrupted; start again."):
        config = parse(CostConfig, default=CostConfig(), description=__doc__)
        with held_new_folder(config.run.out):
            lines, variance = measure(config)
            for line in lines:
                append_line(config.run.out / "costs.jsonl", line)
            append_line(config.run.out / "costs.jsonl", {"what": "variance", "ratios": variance})
            step = float(np.median(lines[0]["seconds"]))
            rows = []
            for line in lines:
                low, middle, high = np.quantile(line["seconds"], (0.25, 0.5, 0.75))
                rows.append(
                    [line["what"], f"{1e3 * middle:.2f}", f"{1e3 * low:.2f} to {1e3 * high:.2f}",
                     f"{middle / step:.2f}"]
                )  # fmt: skip
            text = (
                f"`{command_line(__file__)}` at commit {COMMIT}, "
                f"on {jax.devices()[0].device_kind}\n\n"
                + table(["what", "median ms", "quartiles", "steps"], rows)
                + "\n\nVariance of a coreset's mean embedding, over that of a stratified batch of m:"
                + "\n\n"
                + table(["coresets", "variance"], [[name, f"{v:.3f}"] for name, v in variance.items()])
                + "\n"
            )
            (config.run.out / "costs.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
