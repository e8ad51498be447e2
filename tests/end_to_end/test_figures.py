"""Every measured figure on the README and the site stands in a folder of results, or follows from one.

Figures with a spread stand in a table of a folder that their page names. Sentences of ``SAID`` are made
anew from the results. Every other number with a decimal point or a unit stands in such a table, too,
unless ``GIVEN`` says that it was chosen, follows from a definition or was measured by others.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.cost_model import JOBS, Job, as_table, memory, units

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
TABLES = {
    str(path.parent.relative_to(RESULTS)): path.read_text(encoding="utf-8")
    for path in RESULTS.rglob("*.md")
    if path.parent != RESULTS
}


def lines(name):
    """The JSON lines of a file of results."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def row(folder, name, column, nth=0):
    """The number of a row and column in a folder's table; ``nth`` where several rows have the name."""
    heads, found = [], []
    for line in TABLES[folder].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = cells
        elif cells[0] == name:
            found.append(dict(zip(heads, cells, strict=True)))
    return float(re.match(r"[+-]?[\d.,]+", found[nth][column])[0].replace(",", ""))


def span(numbers, digits=0):
    numbers = list(numbers)
    return f"{min(numbers):.{digits}f} to {max(numbers):.{digits}f}"


def times_of_peers():
    """How many times as long exact peers take as crest_jax, by peer, data, n, d and similarity."""
    seconds = {
        (line["method"], line["data"], line["n"], line["d"], line["kernel"]): line["seconds"]
        for line in lines("selection/results.jsonl")
        if line.get("part") == "pool" and "seconds" in line
    }
    return {
        (method, *problem): taken / seconds["ours", *problem]
        for (method, *problem), taken in seconds.items()
        if method in {"submodlib", "apricot"}
    }


def first_page():
    times = times_of_peers().values()
    low, high = min(times), max(times)
    yield f"facility location, on one pool {low:.1f} to {high:.0f} times as fast as that of submodlib"
    paper = [
        row(f"equivalent/{name}", "CREST (paper)", "cost, seconds")
        for name in ("short_mlp", "long_mlp", "imbalanced_mlp")
    ]
    yield f"CREST (paper) takes {span(paper)} times as long as stratified batches on MLPs"


def selection():
    def times(peer, d):
        return span(
            ratio
            for (name, data, n, width, kernel), ratio in times_of_peers().items()
            if (name, data, width, kernel) == (peer, "normal", d, "max - distance") and n >= 5_000
        )

    yield f"{times('submodlib', 10)} times faster than submodlib"
    yield f"{times('apricot', 10)} times faster than apricot at d = 10"
    yield f"{times('submodlib', 64)} and {times('apricot', 64)} times."
    far = {
        line["method"]: line["mean_distance"]
        for line in lines("selection/results.jsonl")
        if line.get("n") == 7_000_000
    }
    more = far["exact on 20000 rows"] / far["partitioned"] - 1
    yield f"costs 5 s and comes within {np.ceil(100 * more):.0f} %"


def cifar():
    def of(name, column="cost, steps"):
        return row("equivalent/cifar10_jpeg_resnet8", name, column)

    paper, recommended = of("CREST (paper)"), of("CREST (recommended)")
    full = of("full training")
    yield f"pauses, at {100 * (recommended - 1):.0f} % more work than stratified batches"
    yield (
        f"By work CREST (paper) is {full / paper:.1f} times as fast as full training, CREST "
        f"(recommended) {full / recommended:.1f} times, and stratified batches {full:.0f} times"
    )
    methods = "CREST (paper)", "CREST (recommended)"
    errors = [of(name, "relative error to full, %") for name in methods]
    assert len({f"{error:.0f}" for error in errors}) == 1
    yield f"relative error, {errors[0]:.0f} %"
    runs = [
        line
        for line in lines("equivalent/cifar10_jpeg_resnet8/summary.jsonl")
        if line["variant"] == "paper"
    ]
    began = [np.array([c["step"] for c in run["checks"] if c["began_region"]]) for run in runs]
    steps = [np.diff([*own, run["steps"]]) for own, run in zip(began, runs, strict=True)]
    before, after = (
        np.median(
            np.concatenate([own[(at < 391) == early] for own, at in zip(steps, began, strict=True)])
        )
        for early in (True, False)
    )
    yield (
        f"in {len(runs)} runs: {span(map(len, began))}, of {before:.0f} steps in the median before the "
        f"first drop of the rate and {after:.0f} after it, the longest {max(map(max, steps))}."
    )
    checks = [check for run in runs for check in run["checks"] if check["rho"] is not None]
    rho, unchanged = (
        float(np.median([check[name] for check in checks])) for name in ("rho", "rho_unchanged")
    )
    better = np.mean([check["rho"] < check["rho_unchanged"] for check in checks])
    yield (
        f"At {len(checks):,} checks the quadratic model's error has a median of {rho:.3f}, where "
        f"predicting no change has {unchanged:.3f}; the model is the better one at "
        f"{100 * better:.0f} % of them."
    )


def more_steps():
    steps = row("equivalent/short_resnet", "stratified, more steps", "cost, steps")
    yield f"in 320 steps, and {100 * (steps - 1):.0f} % more steps, which take as long, gain more"


def group_norm():
    found = {
        (run["variant"], run["seed"]): 100 * run["curve"][-1]["accuracy"]
        for run in lines("equivalent/short_resnet_group_validation/summary.jsonl")
    }
    behind = [found["1", seed] - found["no_pause", seed] for seed in (0, 1, 2)]
    assert sum(points > 2 for points in behind) == 1
    yield f"one of three runs that never paused ended {max(behind):.0f} points below stratified"


def accelerators():
    before, after = (row("commits", "medoids of 256 in 10 classes", at) for at in ("before", "after"))
    yield f"(1.08: 256 rows, {after - before:.2f} ms)"
    plain, drawn, medoids = (
        row("accelerator_steps", name, "kernels")
        for name in (
            "8 training steps",
            "8 steps with coresets: importance",
            "8 steps with coresets: medoids",
        )
    )
    yield f"adds {(drawn - plain) / 8:.0f} kernels to the {plain / 8:.0f} of a ResNet-8 step"
    yield f"medoids add {(medoids - plain) / 8:.0f}."


def long_files():
    def of(examples, column):
        name = f"{examples:,}"
        return np.array([row("large", name, column, nth) for nth in (0, 1)])

    step = of(10**7, "CREST, ms a step") - of(10**5, "CREST, ms a step")
    window = of(10**7, "end a window, ms") - of(10**5, "end a window, ms")
    yield f"A step of CREST takes {step.mean():.2f} ms more at 10^7 than at 10^5 examples"
    yield f"the end of a window: {window.mean() / 100:.2f} ms a step."
    peak = row("large", "10,000,000", "peak MiB", 1) / 1024
    yield f"the system maps is {peak:.1f} GiB"


def apart():
    found = [line["params_gap"] for line in lines("devices/devices.jsonl")]
    yield f"are {span(100 * number for number in found if number)} % apart in norm"


def predicted_costs():
    yield from long_files()
    yield from apart()
    work = units(Job())
    yield f"CREST's work is {100 * work.overhead:.0f} % of that of the steps while it selects"
    yield f"and {100 * work.overhead * Job().span:.0f} % in the mean"
    yield as_table(JOBS)
    each = [memory(job).per_example / 1e9 for job in JOBS.values()]
    yield (
        f"{each[0]:.1f} GB for ImageNet-21k, {each[1]:.1f} GB for LAION-400M, {each[2]:.0f} GB for "
        "10^9 texts"
    )
    yield f"`4 r c` bytes, {4 * 2_048 * 21_841 / 1e6:.0f} MB for 2,048 rows"


def random_batches():
    def of(name):
        return [row(f"gradient_quality/{name}", "random, m", "error", nth) for nth in (0, 1)]

    yield f"Random batches have {span(of('long_mlp') + of('short_mlp'), 1)}"
    yield f"up to {max(of('short_resnet_group')):.1f} with GroupNorm"


SAID = {
    "README.md": first_page,
    "docs/accelerators.md": accelerators,
    "docs/batch_norm.md": more_steps,
    "docs/choosing_a_coreset.md": selection,
    "docs/results/cifar10.md": cifar,
    "docs/results/resnet.md": group_norm,
    "docs/scaling.md": predicted_costs,
    "docs/theory.md": random_batches,
}
# What was chosen, follows from a definition, is somebody else's or a prediction.
GIVEN = {
    "docs/accelerators.md": "0.8 0.9 1.0 50 0.4 5",  # predictions
    "docs/results/cifar10.md": "0.9 0.1 1.67 2.33 1.7 2.5",  # rates; costs of r = 2m, 4m; the paper's
    "docs/results/resnet.md": "0.02 0.1",
    "docs/results/text.md": "22.6 2.33",  # millions of parameters; cost of r = 4m
    "docs/scaling.md": "1.3 13 76 10 150 100 8.2 8.8 22 110 30 1",  # sizes; assumptions
    "docs/should_i_use_it.md": "0.2 0.5 0.75",
    "docs/theory.md": "0.5 0.75",
}
NUMBER = re.compile(r"(?<![\w.,^])[+-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w^]|\.\d)")
WITH_SPREAD = re.compile(r"[+-]?\d+\.\d+ ± \d+\.\d+|\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]")
UNIT = re.compile(r" (%|times|ms|seconds|minutes|hours|s|[KMG]i?B|points|percent|GFLOP|TFLOP)\b|\s%")


def one_line(text):
    return " ".join(text.split())


def prose(text):
    """A page without code, addresses and what has a spread."""
    for pattern in (
        r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)", r"https?://\S+", r"[+-]?[\d.,]+ ± [\d.]+",
        r"[\d.]+ \[[^\]]*\]", r"arXiv [\d.]+",
    ):  # fmt: skip
        text = re.sub(pattern, " ; ", text, flags=re.DOTALL)
    return text


def value(token):
    return abs(float(token.replace(",", "")))


def measured(text):
    """The numbers of a text that look measured: with a decimal point, or with a unit."""
    return [
        found[0]
        for found in NUMBER.finditer(text)
        if "." in found[0] or UNIT.match(text[found.end() : found.end() + 12])
    ]


def digits(token):
    return len(token.lstrip("+-0.").replace(".", "").replace(",", ""))


def stands(token, numbers):
    """Whether a number is among those of the tables: to its digit where it has three and more."""
    if value(token) in numbers:
        return True
    places = len(token.partition(".")[2])
    return digits(token) >= 3 and any(
        f"{number:.{places}f}" == f"{value(token):.{places}f}" for number in numbers
    )


@pytest.mark.parametrize("page", SAID)
def test_what_a_page_says_follows_from_the_results(page):
    said = list(SAID[page]())
    assert said
    text = one_line(PAGES[page])
    for sentence in said:
        assert one_line(sentence) in text


def named(page):
    """The tables of the folders that a page names; the README may say what any of them does."""
    return [
        table
        for name, table in TABLES.items()
        if page == "README.md" or re.search(rf"results/{name}\b|`{name}`", PAGES[page])
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_number_stands_in_a_folder_that_its_page_names(page):
    numbers = {value(token) for table in named(page) for token in NUMBER.findall(table)}
    text = one_line(PAGES[page])
    for sentence in SAID.get(page, lambda: [])():
        text = text.replace(one_line(sentence), " ; ")
    given = GIVEN.get(page, "").split()
    found = {token for token in measured(prose(text)) if token.lstrip("+-") not in given}
    assert {token for token in found if not stands(token, numbers)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_with_a_spread_stands_in_a_folder_that_its_page_names(page):
    written = {figure for table in named(page) for figure in WITH_SPREAD.findall(table)}
    text = re.sub(r"```text\n.*?```", "", PAGES[page], flags=re.DOTALL)  # what a sample printed
    found = set(WITH_SPREAD.findall(text))
    assert found - written == set()
    assert found or page != "README.md"


def test_the_table_of_results_names_every_folder_and_no_other():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    assert {name for name in TABLES if name not in listed} <= {
        name for name in TABLES if name.rpartition("/")[0] in listed
    }
    assert listed <= set(TABLES)
