"""Tables and picture of the benchmark of selection."""

import importlib.util
import platform
from pathlib import Path
from typing import Any

from experiments.harness.run_folder import COMMIT

BATCHES_HEAD = """## Mini-batches

Milliseconds, median (range); the similarity is exp(-distance / d) for both. The last column is
crest_jax with max - distance, CREST's own similarity.

| problems x rows, classes, picks | submodlib | crest_jax | ratio | compile, s | max - distance |
|---|---|---|---|---|---|"""
POOL_HEAD = """## One pool, a tenth chosen

Seconds, median. Peers are given the ready similarity matrix (rounded from float64), crest_jax the
embeddings and 64 MiB; "apricot sparse" is approximate (100 neighbours), the seconds to find neighbours
stand apart. Gap: the largest relative shortfall of any pick's gain, in float64.

| data | n | d | kernel | method | s | against crest_jax | largest gap | objective |
|---|---|---|---|---|---|---|---|---|"""
SPARSE_HEAD = """## A graph of nearest neighbours, a hundredth chosen

Seconds, median. All but "from embeddings" are given the ready graph (max - distance to {neighbours}
neighbours, made symmetric, d = 10), which took scikit-learn the seconds in brackets. "From embeddings"
builds a graph of its own, whose rows are not made symmetric. The objective is on the given graph.

| n, picks | method | s | against crest_jax | objective |
|---|---|---|---|---|"""
LARGE_HEAD = """## Large

Mean distance of 20,000 other rows to their nearest pick: lower is better.

| n x d, picks | method | s | peak MiB | mean distance |
|---|---|---|---|---|"""

EXTRAS_HEAD = """## Earlier picks and costs

Seconds, median, max - distance, d = 10. A tenth is chosen: half of it is there already ("initial"), or
rows cost 1 to 5 and the budget is that of a tenth on average ("costs"). Peers are given the ready
matrix, crest_jax the embeddings. By costs crest_jax takes the better of two runs; submodlib's two are
added up, apricot makes one, by gain over cost. Compilation is taken off. The objective is in float64,
relative to crest_jax.

| n | what | method | s | against crest_jax | objective |
|---|---|---|---|---|---|"""


def summarise(lines: list[dict[str, Any]], out: Path) -> None:
    """Write ``summary.md`` and the pictures from all measurements."""
    text = [versions(), ""]
    found = [line for line in lines if line["part"] == "batches"]
    if found:
        text += [BATCHES_HEAD, *map(batch_row, found), ""]
    found = [line for line in lines if line["part"] == "pool" and "seconds" in line]
    if found:
        text += [POOL_HEAD]
        for line in found:
            own = next(x for x in found if same_problem(x, line) and x["method"] == "ours")
            text.append(pool_row(line, own))
        compile_s = [line["compile_s"] for line in found if "compile_s" in line]
        text += ["", f"Compilation: {min(compile_s):.1f} to {max(compile_s):.1f} s, once a shape.", ""]
    found = [line for line in lines if line["part"] == "pool" and "peak_mib" in line]
    if found:
        text += ["Peak memory above the embeddings, MiB:", "", "| n | method | MiB |", "|---|---|---|"]
        text += [f"| {x['n']:,} | {name(x)} | {x['peak_mib']:.0f} |" for x in found]
        text.append("")
    found = [line for line in lines if line["part"] == "sparse"]
    if found:
        text += [SPARSE_HEAD.format(neighbours=found[0]["neighbours"])]
        for line in found:
            own = next(x for x in found if x["n"] == line["n"] and x["method"] == "ours")
            text.append(sparse_row(line, own))
        text.append("")
    found = [line for line in lines if line["part"] == "large"]
    if found:
        text += [LARGE_HEAD, *map(large_row, found), ""]
    found = [line for line in lines if line["part"] == "extras"]
    if found:
        text.append(EXTRAS_HEAD)
        for line in found:
            same = [x for x in found if (x["n"], x["what"]) == (line["n"], line["what"])]
            text.append(extras_row(line, next(x for x in same if x["method"] == "ours")))
        text.append("")
    (out / "summary.md").write_text("\n".join(text), encoding="utf-8")
    draw(lines, out / "selection.png")


def name(line: dict[str, Any]) -> str:
    """The method as readers know it."""
    return str(line["method"]).replace("ours", "crest_jax")


def batch_row(line: dict[str, Any]) -> str:
    """One row of the table of mini-batches."""
    ours, theirs = 1e3 * line["ours"], 1e3 * line["submodlib"]
    low, high = (1e3 * value for value in line["spread"]["ours"])
    return (
        f"| {line['problems']} x {line['rows']}, {line['classes']}, {line['size']} | {theirs:.1f} | "
        f"{ours:.2f} ({low:.2f} to {high:.2f}) | {theirs / ours:.0f} | {line['compile_s']:.1f} | "
        f"{1e3 * line['ours, max - distance']:.2f} |"
    )


def pool_row(line: dict[str, Any], own: dict[str, Any]) -> str:
    """One row of the table of pools."""
    gap = f"{line['largest_gap']:.1e}" if "largest_gap" in line else ""
    graph = f" + {line['neighbour_graph_s']:.3g}" if "neighbour_graph_s" in line else ""
    return (
        f"| {line['data']} | {line['n']:,} | {line['d']} | {line['kernel']} | {name(line)} | "
        f"{line['seconds']:.3g}{graph} | {line['seconds'] / own['seconds']:.1f} | {gap} | "
        f"{line['objective'] / own['objective']:.7f} |"
    )


def sparse_row(line: dict[str, Any], own: dict[str, Any]) -> str:
    """One row of the table of graphs."""
    return (
        f"| {line['n']:,}, {line['size']:,} ({line['graph_s']:.2g} s) | {name(line)} | "
        f"{line['seconds']:.3g} | {line['seconds'] / own['seconds']:.1f} | "
        f"{line['objective'] / own['objective']:.7f} |"
    )


def large_row(line: dict[str, Any]) -> str:
    """One row of the table of large data."""
    peak = f"{line['peak_mib']:.0f} (input {line['input_mib']:.0f})" if "peak_mib" in line else ""
    return (
        f"| {line['n']:,} x {line['d']}, {line['size']:,} | {line['method']} | {line['seconds']:.0f} | "
        f"{peak} | {line['mean_distance']:.4f} |"
    )


def extras_row(line: dict[str, Any], own: dict[str, Any]) -> str:
    """One row of the table of earlier picks and costs."""
    return (
        f"| {line['n']:,} | {line['what']} | {name(line)} | {line['seconds']:.3g} | "
        f"{line['seconds'] / own['seconds']:.1f} | {line['objective'] / own['objective']:.7f} |"
    )


def same_problem(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two lines are of one problem."""
    return all(a[key] == b[key] for key in ("data", "n", "d", "kernel"))


def versions() -> str:
    """Say what was measured."""
    names = ("jax", "numpy", "submodlib-py", "apricot-select")
    there = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names if name in there)
    return (
        f"{found}; Python {platform.python_version()}; one core, {platform.machine()}; commit "
        f"{COMMIT}; command: `python -m experiments.benchmarks.selection`."
    )


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    chosen = [x for x in lines if x["part"] == "pool" and x["data"] == "normal" and x["d"] == 10]
    panels = [
        ("seconds", "max - distance", "seconds", "time, max - distance"),
        ("seconds", "exp(-distance / d)", "seconds", "time, exp(-distance / d)"),
        ("peak_mib", "max - distance", "MiB above the embeddings", "peak memory, max - distance"),
    ]
    for axis, (field, kernel, label, title) in zip(axes, panels, strict=True):
        for method, mark in (
            ("ours", "o"),
            ("submodlib", "s"),
            ("apricot", "^"),
            ("apricot sparse", "v"),
        ):
            own = [x for x in chosen if x["method"] == method and field in x and x["kernel"] == kernel]
            own.sort(key=lambda x: x["n"])
            if own:
                axis.plot(
                    [x["n"] for x in own], [x[field] for x in own], marker=mark, label=name(own[0])
                )
        axis.set(xscale="log", yscale="log", xlabel="examples n", ylabel=label, title=title)
        ticks = sorted({x["n"] for x in chosen})
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axis.xaxis.minorticks_off()
        axis.grid(visible=True, which="both", alpha=0.3)
        if axis.get_lines():
            axis.legend()
    figure.suptitle(
        "Greedy facility location, n / 10 chosen, d = 10, one core; apricot sparse is approximate, and "
        "finding neighbours is not counted"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
