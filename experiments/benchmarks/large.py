"""Does the cost of CREST grow with the number of examples? A file is read as it is needed.

    python -m experiments.benchmarks.large --sizes 100000 1000000 10000000 --out runs/large

Writes a file of synthetic examples (a mixture of Gaussians, 32 features, 10 classes) to ``--scratch``,
then trains a small network on its first rows, once for each size and each in a process of its own:
some steps on stratified batches and as many on coresets, selected throughout, in turns. Nothing but
the labels and a few bytes an example are in memory. Writes ``large.jsonl`` and ``large.md``.
"""

import dataclasses
import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from crest_jax import (
    Batch,
    BatchSelector,
    CrestConfig,
    ExclusionConfig,
    HostSource,
    crest,
    cross_entropy,
    stratified_batches,
)
from crest_jax.data import make_strata
from crest_jax.data.pool import end_window
from crest_jax.gradients import weighted_mean
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import COMMIT, LOCK, Lock, held_new_folder
from experiments.sweep import made_by

READS = 200
FEATURES, CLASSES, HIDDEN, WRITTEN = 32, 10, 64, 100_000


@dataclasses.dataclass(frozen=True)
class LargeConfig:
    """What to run."""

    sizes: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    """Numbers of examples."""
    steps: int = 400
    """Steps of each method."""
    rounds: int = 4
    """Turns that the two methods take; the first is left out of the medians."""
    scratch: Path = Path("runs/scratch")
    """Folder of the file of examples, 129 bytes each; it is kept for the next time."""
    out: Path = Path("runs/large")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.sizes or min(self.sizes) < 10_000:
            raise UserError(
                f"--sizes is {self.sizes} but each must be at least 10000; the defaults are usual."
            )
        if self.rounds < 2 or self.steps % self.rounds or self.steps // self.rounds < 10:
            raise UserError(
                f"--steps is {self.steps} and --rounds {self.rounds} but there must be at least two "
                "rounds of equally many steps, ten or more; 400 and 4 are usual."
            )


def paths(scratch: Path, count: int) -> tuple[Path, Path]:
    """Return the files of inputs and labels."""
    return scratch / f"mixture_{count}.npy", scratch / f"mixture_{count}_labels.npy"


def write_examples(scratch: Path, count: int) -> None:
    """Write inputs [count, 32] and labels [count], unless they are there."""
    inputs_path, labels_path = paths(scratch, count)
    if labels_path.is_file():
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with Lock(scratch / LOCK, f"--scratch {scratch}"):
        if not labels_path.is_file():  # nor made since by another run
            _write_examples(inputs_path, labels_path, count)


def _write_examples(inputs_path: Path, labels_path: Path, count: int) -> None:
    shape = (count, FEATURES)
    inputs = np.lib.format.open_memmap(inputs_path, "w+", np.float32, shape)
    rng = np.random.default_rng(0)
    centres = 0.5 * rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count).astype(np.uint8)
    for start in tqdm(range(0, count, WRITTEN), desc="writing examples", unit="part"):
        own = labels[start : start + WRITTEN]
        noise = rng.standard_normal((len(own), FEATURES), np.float32)
        inputs[start : start + WRITTEN] = centres[own] + noise
    inputs.flush()
    np.save(labels_path, labels)


def apply_fn(params: Any, model_state: Any, inputs: jax.Array, *, train: bool, rng: Any) -> Any:
    """Return the logits of an MLP with one hidden layer."""
    del train, rng
    hidden = jax.nn.relu(inputs @ params["w"] + params["b"][None, :])
    return hidden @ params["v"] + params["c"][None, :], model_state


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Return new parameters."""
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (FEATURES, HIDDEN)) / FEATURES**0.5,
        "b": jnp.zeros(HIDDEN),
        "v": jax.random.normal(second, (HIDDEN, CLASSES)) / HIDDEN**0.5,
        "c": jnp.zeros(CLASSES),
    }


def make_step(optimizer: optax.GradientTransformation) -> Any:
    """Return the compiled training step: (params, opt_state), batch -> the same, losses."""

    @jax.jit
    def step(state: tuple[Any, Any], batch: Batch) -> tuple[tuple[Any, Any], jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return weighted_mean(losses, batch.weights), losses

        (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(state[0])
        updates, opt_state = optimizer.update(gradient, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), losses

    return step


def memory_kib(name: str) -> int:
    """Return a line of ``/proc/self/status`` in KiB, 0 where there is none."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def bytes_each(state: Any, count: int) -> float:
    """Return the bytes of a state that grow with the examples, per example."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "ndim", 0)]
    return sum(leaf.nbytes for leaf in leaves if leaf.shape[0] == count) / count


def measure(
    count: int, inputs_path: Path, labels_path: Path, steps: int, rounds: int
) -> dict[str, Any]:
    """Train on the first ``count`` rows; return times and memory."""
    begun = time.perf_counter()
    labels = np.load(labels_path, mmap_mode="r")[:count]
    source = HostSource(np.load(inputs_path, mmap_mode="r")[:count], labels)
    config = dataclasses.replace(
        CrestConfig.recommended(steps=steps, num_examples=count), select_from=None, select_until=None
    )
    optimizer = optax.sgd(0.1, momentum=0.9)
    step = make_step(optimizer)
    methods: dict[str, BatchSelector] = {
        "stratified": stratified_batches(source, config.batch_size),
        "crest": crest(apply_fn, source, config),
    }
    params = init(jax.random.key(0))
    states: dict[str, Any] = {
        name: ((params, optimizer.init(params)), selection.init(jax.random.key(1), params, {}))
        for name, selection in methods.items()
    }
    set_up, seconds = time.perf_counter() - begun, {name: [] for name in methods}  # type: ignore[var-annotated]
    private = 0
    for _ in range(rounds):
        for name, selection in methods.items():
            state, selected = states[name]
            start = time.perf_counter()
            for _ in range(steps // rounds):
                selected, _ = selection.refresh(selected, state[0], {})
                selected, batch = selection.next_batch(selected)
                state, losses = step(state, batch)
                selected = selection.observe(selected, batch, losses)
            jax.block_until_ready(state)
            seconds[name].append((time.perf_counter() - start) / (steps // rounds))
            states[name] = state, selected
            private = max(private, memory_kib("RssAnon"))
    whole = states["crest"][1]
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, count, config.subset_size) for _ in range(READS)]
    inputs, strata = np.load(inputs_path, mmap_mode="r"), make_strata(labels, CLASSES)
    own = ExclusionConfig.recommended()
    window = strata.classes, strata.sizes, strata.sizes // 10, own.cooldown, own.keep_fraction
    return {
        "read_seconds": _median(lambda rows: inputs[rows], drawn),
        "window_seconds": _median(lambda _: end_window(whole.pool.exclusion, *window), range(9)),
        "examples": count,
        "set_up_seconds": set_up,
        "seconds_per_step": seconds,
        "num_regions": whole.num_regions,
        "num_selected": whole.num_selected,
        "excluded": whole.excluded,
        "state_bytes_each": bytes_each(whole, count),
        "private_mib": private / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "commit": COMMIT,
        "device": jax.devices()[0].device_kind,
    }


def _median(function: Callable[[Any], Any], arguments: Iterable[Any]) -> float:
    """Return the median seconds of a call, without the first one."""
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def as_table(lines: list[dict[str, Any]]) -> str:
    """Return the table of ``measure``'s lines; the first round is left out."""
    rows = []
    for line in lines:
        plain, ours = (
            1e3 * float(np.median(line["seconds_per_step"][name][1:]))
            for name in ("stratified", "crest")
        )
        rows.append(
            [
                f"{line['examples']:,}", f"{plain:.2f}", f"{ours:.2f}", f"{ours / plain:.2f}",
                f"{128e3 / ours:,.0f}", f"{1e3 * line['read_seconds']:.2f}",
                f"{1e3 * line['window_seconds']:.1f}",
                str(line["num_regions"]), str(line["num_selected"]),
                f"{line['state_bytes_each']:.0f}", f"{line['private_mib']:.0f}",
                f"{line['peak_mib']:.0f}", f"{line['set_up_seconds']:.1f}",
            ]
        )  # fmt: skip
    header = [
        "examples", "stratified, ms a step", "CREST, ms a step", "ratio", "CREST, examples a second",
        "read a subset, ms", "end a window, ms",
        "regions", "coresets", "state, bytes an example", "private MiB", "peak MiB", "set-up, s",
    ]  # fmt: skip
    return table(header, rows)


EXPLANATION = """
Milliseconds are medians over rounds of all work of a step, coresets selected throughout, without the
first round, which compiles. "private": the process's own memory; "peak" counts the pages of the file
that the system keeps, too. "read a subset": 256 rows at random from the file, which the system keeps
in memory; CREST reads one a step, stratified batches half of it. "end a window": once in 100 steps.
"state": what CREST keeps for each example, beside its order and class (5 bytes).
"""


def main() -> None:
    """Read the command line, measure, and write the files."""
    with one_sentence("interrupted; start again with another --out."):
        config = tyro.cli(LargeConfig, description=__doc__)
        with held_new_folder(config.out):
            write_examples(config.scratch, max(config.sizes))
            files = paths(config.scratch, max(config.sizes))
            lines = []
            context = multiprocessing.get_context("spawn")
            for count in tqdm(config.sizes, desc="sizes", unit="size"):
                with context.Pool(1) as pool:
                    lines.append(pool.apply(measure, (count, *files, config.steps, config.rounds)))
                append_line(config.out / "large.jsonl", lines[-1])
            text = f"{made_by(__file__, None, lines, 1)}\n\n{as_table(lines)}\n{EXPLANATION}"
            (config.out / "large.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
