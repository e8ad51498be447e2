"""Time selection side by side with submodlib and apricot, on one core, and check that exact is exact.

    python -m experiments.benchmarks.selection --out runs/selection

Needs the extra ``peers``. Every part writes one JSON line for each measurement into ``results.jsonl``,
from which ``summary.md`` and the pictures are made; a part that is already there is not run again.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
import tyro

from experiments.benchmarks.peers import (
    dissimilarity,
    gaps,
    growth,
    objective,
    run_apricot,
    run_ours,
    run_ours_neighbors,
    run_ours_sparse,
    run_submodlib,
    run_submodlib_sparse,
    similarity32,
    sparse_similarities,
    submodlib_by_class,
)
from experiments.benchmarks.selection_extras import extras
from experiments.benchmarks.selection_page import summarise
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.run_folder import held_folder

MIB = 2**20
PARTS = ("batches", "pool", "sparse", "large", "extras")
KERNELS = {"max - distance": "euclidean", "exp(-distance / d)": "exponential"}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    out: Path = Path("runs/selection")
    parts: tuple[str, ...] = PARTS
    images: bool = True  # also pools of projected images
    sizes: tuple[int, ...] = (2_000, 5_000, 10_000, 20_000, 50_000)  # n of the pools
    extra_sizes: tuple[int, ...] = (2_000, 10_000)  # n of the pools with earlier picks, or costs
    sparse_sizes: tuple[int, ...] = (5_000, 20_000)  # n of the graphs
    neighbours: int = 50  # of each row in the graphs
    repeats: int = 3  # of ours and of peers that take less than a minute
    budget_mib: int = 64  # memory above the input for the exact form
    large_rows: tuple[int, int] = (1_000_000, 7_000_000)
    scratch: Path = Path("/tmp")  # for the file of the streaming part

    def __post_init__(self) -> None:
        """Check the settings."""
        wrong = [part for part in self.parts if part not in PARTS]
        if wrong:
            raise UserError(f"--parts has {wrong[0]!r} but must be among {', '.join(PARTS)}; drop it.")
        if not 2 <= self.neighbours <= min(self.sparse_sizes):
            raise UserError(
                f"--neighbours is {self.neighbours} but must lie in [2, {min(self.sparse_sizes)}]; 50 "
                "is usual."
            )
        if self.repeats < 1:
            raise UserError(f"--repeats is {self.repeats} but must be at least 1; ask for one run.")


def batches(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """Mini-batches as CREST takes them, against one call of submodlib for each class."""
    import jax.numpy as jnp

    from crest_jax import select_coreset

    rng = np.random.default_rng(0)
    for problems, rows, size, classes in (
        (5, 500, 128, 10), (20, 500, 128, 10), (100, 500, 128, 10),
        (1, 5_000, 128, 10), (1, 5_000, 128, 100), (1, 5_000, 1_280, 10), (1, 5_000, 1_280, 100),
    ):  # fmt: skip
        x = rng.normal(size=(problems, rows, 10)).astype(np.float32)
        labels = np.stack([rng.permutation(np.arange(rows) % classes) for _ in range(problems)])
        quotas = np.full(classes, size // classes)
        quotas[: size % classes] += 1
        pool = jnp.asarray(x)

        def ours(kernel: str, args: Any = (pool, size, labels, quotas)) -> float:
            start = time.perf_counter()
            found = select_coreset(args[0], args[1], labels=args[2], quotas=args[3], metric=kernel)
            np.asarray(found.weights)
            return time.perf_counter() - start

        def theirs(args: Any = (x, labels, quotas)) -> float:
            start = time.perf_counter()
            for pool, own in zip(args[0], args[1], strict=True):
                submodlib_by_class(pool, own, args[2])
            return time.perf_counter() - start

        cold = ours("exponential")
        ours("euclidean"), theirs()
        times: dict[str, list[float]] = {"ours": [], "ours, max - distance": [], "submodlib": []}
        for _ in range(max(5, config.repeats)):
            times["ours"] += [ours("exponential") for _ in range(3)]
            times["submodlib"].append(theirs())
            times["ours, max - distance"] += [ours("euclidean") for _ in range(3)]
        yield {
            "part": "batches", "problems": problems, "rows": rows, "size": size, "classes": classes,
            "compile_s": cold, **{name: statistics.median(t) for name, t in times.items()},
            "spread": {name: [min(t), max(t)] for name, t in times.items()},
        }  # fmt: skip


def data(source: str, rows: int, width: int) -> np.ndarray:
    """Return normal points, or Fashion-MNIST images projected to ``width`` random directions."""
    if source == "normal":
        return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    from experiments.data import load

    images = load("fashion_mnist_20k").train_inputs[:rows].astype(np.float32)
    flat = images.reshape(len(images), -1)
    directions = np.random.default_rng(0).normal(size=(flat.shape[1], width)) / np.sqrt(flat.shape[1])
    return (flat @ directions).astype(np.float32)


def pool(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """One pool, a tenth of it chosen."""
    problems = [
        ("normal", n, d, k) for n in config.sizes if n <= 20_000 for d in (10, 64) for k in KERNELS
    ]
    problems += [
        ("normal", n, d, "max - distance") for n in config.sizes if n > 20_000 for d in (10, 64)
    ]
    if config.images:
        problems += [
            ("images", n, 64, k) for n in config.sizes if n in (10_000, 20_000) for k in KERNELS
        ]
    for source, rows, width, label in problems:
        yield from one_pool(config, source, rows, width, label)


def one_pool(
    config: BenchConfig, source: str, rows: int, width: int, label: str
) -> Iterator[dict[str, Any]]:
    """Alternate all contestants on one problem."""
    kernel, size = KERNELS[label], rows // 10
    x = data(source, rows, width)
    budget = config.budget_mib * MIB
    common = {"part": "pool", "data": source, "n": rows, "d": width, "kernel": label, "size": size}
    start = time.perf_counter()
    run_ours(x, size, kernel, budget)
    cold = time.perf_counter() - start
    times: dict[str, list[float]] = {}
    picks: dict[str, np.ndarray] = {}
    extra: dict[str, Any] = {}

    def take(method: str, run: Callable[[], tuple[np.ndarray, float]]) -> None:
        picks[method], seconds = run()
        times.setdefault(method, []).append(seconds)

    dense = rows <= 20_000
    given: dict[str, Any] = {"dense": similarity32(x, kernel)} if dense else {}
    if rows >= 20_000 and label == "max - distance" and source == "normal":
        given["sparse"], extra["neighbour_graph_s"] = sparse_similarities(x, kernel)
    for repeat in range(config.repeats):
        take("ours", lambda: run_ours(x, size, kernel, budget))
        if dense and (repeat == 0 or rows <= 5_000) and (width == 10 or rows <= 10_000):
            take("submodlib", lambda: run_submodlib(given["dense"], size))
        if dense and (repeat == 0 or rows <= 10_000):
            take("apricot", lambda: run_apricot(given["dense"], size))
        if "sparse" in given and repeat == 0:
            take("apricot sparse", lambda: run_apricot(given["sparse"], size))
    given.clear()
    values = dissimilarity(x, kernel) if dense else None
    top = 1.0 if kernel == "exponential" else float(values.max()) if values is not None else 0.0
    for method, found in picks.items():
        line: dict[str, Any] = dict(common, method=method, seconds=statistics.median(times[method]))
        line.update(spread=[min(times[method]), max(times[method])], runs=len(times[method]))
        if method == "ours":
            line["compile_s"] = max(0.0, cold - line["seconds"])
        if method == "apricot sparse":
            line.update(extra)
        if values is not None and method != "apricot sparse":
            line["largest_gap"] = float(gaps(values, found, top).max())
        line["objective"] = objective(
            x, found, kernel, top or 2 * float(np.linalg.norm(x, axis=1).max())
        )
        yield line
    del values
    methods = [m for m in picks if rows <= 50_000 and (m != "submodlib" or rows <= 20_000)]
    for method in methods if source == "normal" and label == "max - distance" and width == 10 else []:
        yield dict(common, method=method, peak_mib=peak_memory(method, rows, width, kernel, config))


def peak_memory(method: str, rows: int, width: int, kernel: str, config: BenchConfig) -> float:
    """Peak memory above the input, MiB, in a process of its own."""
    asked = json.dumps([method, rows, width, kernel, config.budget_mib])
    command = [sys.executable, "-m", "experiments.benchmarks.selection", "--measure-memory", asked]
    # Large blocks come from the system and go back at once: what a run freed is not reused unseen.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return float(found.stdout.strip().splitlines()[-1])


def measure_memory(method: str, rows: int, width: int, kernel: str, budget_mib: int) -> float:
    """Run once to compile and warm up, then measure the growth of resident memory at its peak."""
    x = data("normal", rows, width)
    if method == "ours":
        import jax.numpy as jnp

        on_device: Any = jnp.asarray(x)
        for _ in range(2):
            run_ours(on_device, rows // 10, kernel, budget_mib * MIB)
        return growth(lambda: run_ours(on_device, rows // 10, kernel, budget_mib * MIB))
    run = run_submodlib if method == "submodlib" else run_apricot
    run(similarity32(x[:200], kernel), 5)
    if method == "apricot sparse":
        return growth(lambda: run_apricot(sparse_similarities(x, kernel)[0], rows // 10))

    def with_matrix() -> None:  # float32 from the start, so that only what the peer needs is counted
        from scipy.spatial.distance import cdist

        matrix = np.empty((rows, rows), np.float32)
        for first in range(0, rows, 500):
            matrix[first : first + 500] = cdist(x[first : first + 500], x)
        run(matrix.max() - matrix, max(5, rows // 1000))

    return growth(with_matrix)


def sparse(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """One graph of nearest neighbours for all, a hundredth of its rows chosen."""
    for rows in config.sparse_sizes:
        x, size = data("normal", rows, 10), rows // 100
        graph, graph_s = sparse_similarities(x, "euclidean", config.neighbours)
        runs: dict[str, Callable[[], tuple[np.ndarray, float]]] = {
            "ours": partial(run_ours_sparse, graph, size),
            "ours, from embeddings": partial(run_ours_neighbors, x, size, config.neighbours),
            "apricot sparse": partial(run_apricot, graph, size),
        }
        if rows <= 5_000:  # above, its time for all pairs of rows is too long
            runs["submodlib sparse"] = partial(run_submodlib_sparse, graph, size, config.neighbours)
        for method, run in runs.items():
            start = time.perf_counter()
            run()  # compiles ours, and tells how long the peers take
            slow = time.perf_counter() - start > 60 and not method.startswith("ours")
            found = [run() for _ in range(1 if slow else config.repeats)]
            times = [seconds for _, seconds in found]
            yield {
                "part": "sparse", "n": rows, "size": size, "neighbours": config.neighbours,
                "entries": int(graph.nnz), "graph_s": graph_s, "method": method, "runs": len(times),
                "seconds": statistics.median(times), "spread": [min(times), max(times)],
                "objective": float(graph[:, found[0][0]].max(axis=1).sum()),
            }  # fmt: skip


def large(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """Too large for an exact choice: in memory, and from a file."""
    import jax

    from crest_jax import select_coreset, select_coreset_stream

    first, second = config.large_rows
    for rows, width, size, stream in ((first, 32, first // 100, False), (second, 64, 1_000, True)):
        path = config.scratch / f"bench_selection_{rows}x{width}.f32"
        x = mixture(path, rows, width)
        rng = np.random.default_rng(1)
        judged = np.asarray(x[np.sort(rng.choice(rows, 20_000, replace=False))])
        bar = tqdm.tqdm(total=2 * rows, unit="row", desc=f"{rows} x {width}")

        def on_progress(count: int, bar: Any = bar) -> None:
            bar.update(max(0, count - bar.n))

        found: dict[str, Any] = {}

        def ours(stream: bool = stream, x: Any = x, size: int = size, found: Any = found) -> None:
            start = time.perf_counter()
            if stream:
                found["coreset"] = select_coreset_stream(x, size, progress=on_progress)
            else:
                found["coreset"] = select_coreset(np.asarray(x), size, method="partitioned")
            jax.block_until_ready(found["coreset"])
            found["seconds"] = time.perf_counter() - start

        peak = growth(ours)
        bar.close()
        picks = np.asarray(found["coreset"].indices)
        sample = np.sort(rng.choice(rows, max(2 * size, 20_000), replace=False))
        start = time.perf_counter()
        few = select_coreset(np.asarray(x[sample]), size, method="lazy").indices
        subsample_s = time.perf_counter() - start
        chosen = {
            "partitioned": (np.asarray(x[np.sort(picks)]), found["seconds"]),
            f"exact on {len(sample)} rows": (
                np.asarray(x[sample[np.sort(np.asarray(few))]]),
                subsample_s,
            ),
            "random": (np.asarray(x[np.sort(rng.choice(rows, size, replace=False))]), 0.0),
        }
        for method, (heads, seconds) in chosen.items():
            line = {"part": "large", "n": rows, "d": width, "size": size, "method": method}
            line.update(seconds=seconds, mean_distance=mean_distance(judged, heads), judged=len(judged))
            if method == "partitioned":
                line.update(peak_mib=peak, input_mib=rows * width * 4 / MIB, stream=stream)
                line["weights_sum"] = float(np.asarray(found["coreset"].weights, np.float64).sum())
            yield line
        path.unlink()


def with_extras(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """Earlier picks and costs."""
    for rows in config.extra_sizes:
        yield from extras(data("normal", rows, 10), config.repeats)


def mixture(path: Path, rows: int, width: int) -> Any:
    """Write points of 2,000 clusters of uneven size and spread to a file; return it mapped."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2_000, width)).astype(np.float32)
    spread = rng.uniform(0.2, 0.8, 2_000).astype(np.float32)
    share = rng.pareto(1.5, 2_000) + 0.1
    array = np.memmap(path, np.float32, "w+", shape=(rows, width))
    for first in range(0, rows, 100_000):
        count = min(100_000, rows - first)
        own = rng.choice(2_000, count, p=share / share.sum())
        noise = rng.normal(size=(count, width)).astype(np.float32)
        array[first : first + count] = centres[own] + spread[own, None] * noise
    array.flush()
    return np.memmap(path, np.float32, "r", shape=(rows, width))


def mean_distance(rows: np.ndarray, heads: np.ndarray) -> float:
    """Mean distance of rows to the nearest pick, float64."""
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist

    if rows.shape[1] <= 3:
        return float(cKDTree(heads).query(rows)[0].mean())
    parts = np.array_split(rows, max(1, len(rows) * len(heads) // 20_000_000))
    return float(np.mean(np.concatenate([cdist(p, heads).min(axis=1) for p in parts])))


def main(config: BenchConfig) -> None:
    """Refuse what cannot work, and run the parts in a folder that no other program writes to."""
    missing = [n for n in ("submodlib", "apricot") if importlib.util.find_spec(n) is None]
    if missing:
        raise UserError(
            f"{missing[0]} is not installed but is compared with; pip install 'crest_jax[peers]'."
        )
    with held_folder(config.out):
        run_parts(config)


def run_parts(config: BenchConfig) -> None:
    """Run the parts that are not there yet, and write the report."""
    path = config.out / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    there = {line["part"] for line in lines if line.get("end")}
    parts = {
        "batches": batches, "pool": pool, "sparse": sparse, "large": large, "extras": with_extras
    }  # fmt: skip
    for part, run in parts.items():
        if part not in config.parts or part in there:
            continue
        lines = [line for line in lines if line["part"] != part]
        for line in tqdm.tqdm(run(config), desc=part):
            lines.append(line)
            path.write_text("".join(json.dumps(x) + "\n" for x in lines))
        lines.append({"part": part, "end": True})
        path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    summarise([line for line in lines if not line.get("end")], config.out)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for everybody
    if sys.argv[1:2] == ["--measure-memory"]:
        print(measure_memory(*json.loads(sys.argv[2])))
    else:
        with one_sentence("interrupted; the same command goes on with the parts that are missing."):
            main(tyro.cli(BenchConfig, description=__doc__))
