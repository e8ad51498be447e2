"""Which picks a mini-batch coreset should make when there are fewer than two for a class.

    python -m experiments.studies.few_picks --cifar cifar10-jpeg.tar.xz --out runs/few_picks

A subset of ``r`` examples is drawn at random, stratified by class, and ``m`` of them are chosen as
weighted medoids of their logit gradients. Where every class has a few picks, facility location runs
class by class; this script compares rules for where the picks do not suffice for that (``RULES``).

An MLP with one hidden layer is trained by SGD; at several points of its training many subsets
are drawn, every rule chooses out of each of them, and the gradient of the weighted picks (weights
divided by their sum) is compared with that of the whole data and with that of the subset: in all
parameters, and in the logits alone. The measure is the mean of ``|g - G|^2``, over that of stratified
random batches of ``m``. *Bias* is ``|E g - G|^2 / |G|^2``, estimated without bias as
``(|mean - G|^2 - variance / draws) / |G|^2``; ``variance / draws / |G|^2`` stands beside it as "noise".

Data: Fashion-MNIST from its Debian package, and CIFAR-10 as JPEG, averaged over 2 x 2 pixels, where
``--cifar`` names the archive of ``train/CLASS/NNNN.jpg``. Fine classes are clusters of pixels (k-means)
within each class, numbered at random. Writes ``few_picks.json`` and ``few_picks.md``, and every point
to ``few_picks.jsonl`` as soon as it is measured: the same command goes on with those that are missing.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from crest_jax.data import make_strata, next_subset, open_stream
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.records import append_line, read_lines
from experiments.harness.run_folder import COMMIT, held_folder, new_folder
from experiments.studies.few_picks_data import (
    SETTINGS,
    Backward,
    Data,
    FewPicksConfig,
    Network,
    backward,
    epoch_steps,
    fine_classes,
    gradient,
    init,
    read_source,
    shaped_rows,
)
from experiments.studies.few_picks_page import EXPLANATION, machine, report, sources_of, summarise_draws
from experiments.studies.few_picks_rules import RULES, choose
from experiments.sweep import command_line


def full_parts(network: Network, data: Data) -> tuple[Backward, Network]:
    """Return the parts of the gradients of all examples, and the gradient of their mean loss."""
    chunks = [slice(i, i + 5000) for i in range(0, len(data.labels), 5000)]
    found = [backward(network, data.inputs[x], data.labels[x]) for x in chunks]
    total: Any = jax.tree.map(lambda p: np.zeros(p.shape), network)
    for part in found:
        count = part.hidden.shape[0]
        one = gradient(part, jnp.ones(count))
        total = jax.tree.map(lambda t, g, k=count: t + k * np.asarray(g, np.float64), total, one)
    parts = Backward(
        jnp.asarray(data.inputs), *(jnp.concatenate([x[i] for x in found]) for i in (1, 2, 3))
    )
    return parts, jax.tree.map(lambda t: jnp.asarray(t / len(data.labels), jnp.float32), total)


@partial(jax.jit, static_argnames=("size", "most", "num_classes"))
def draw_batches(
    keys: tuple[jax.Array, jax.Array], strata: Any, one: Any, size: int, most: int, num_classes: int
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return rows [most] and weights [most] of a random and of a stratified batch of ``size``."""
    weights = jnp.pad(jnp.ones(size), (0, most - size))
    random = next_subset(open_stream(keys[0], 1), one, size)[1]
    stratified = next_subset(open_stream(keys[1], num_classes), strata, size)[1]
    return {
        "random": (jnp.pad(random, (0, most - size)), weights),
        "stratified": (jnp.pad(stratified, (0, most - size)), weights),
    }


@partial(jax.jit, static_argnames=("subset_size", "most", "num_classes"))
def draw(
    keys: tuple[jax.Array, jax.Array], parts: Backward, classes: jax.Array, strata: Any,
    batches: dict[str, tuple[jax.Array, jax.Array]], size: jax.Array, subset_size: int, most: int,
    num_classes: int,
) -> tuple[Any, jax.Array, jax.Array]:  # fmt: skip
    """Return a subset's gradient, and every rule's rows and weights [rules, most]."""
    subset = next_subset(open_stream(keys[0], num_classes), strata, subset_size)[1]
    chosen = choose(keys[1], parts.second[subset], classes[subset], size, most, num_classes)
    batches = batches | {name: (subset[picks], weights) for name, (picks, weights) in chosen.items()}
    whole = gradient(Backward(*(x[subset] for x in parts)), jnp.ones(subset_size))
    rows, weights = (jnp.stack([batches[name][i] for name in RULES]) for i in (0, 1))
    return whole, rows, weights


def squares(x: Network, y: Network) -> jax.Array:
    """Return the squared distance of gradients, in all parameters and in the logits alone, [2]."""
    each = [jnp.sum(jnp.square(a - b)) for a, b in zip(x, y, strict=True)]
    return jnp.stack([sum(each[1:], each[0]), each[3]])


@jax.jit
def compare_gradients(
    sums: Network, parts: Backward, full: Network, whole: Network, rows: jax.Array, weights: jax.Array
) -> tuple[Network, jax.Array]:
    """Add each rule's gradient to its sum, and return squared errors [rules, 4]."""

    def rule(args: tuple[Network, jax.Array, jax.Array]) -> tuple[Network, jax.Array]:
        total, rows, weights = args
        found = gradient(Backward(*(x[rows] for x in parts)), weights)
        errors = jnp.concatenate([squares(found, full), squares(found, whole)])
        return jax.tree.map(jnp.add, total, found), errors

    return jax.lax.map(rule, (sums, rows, weights))


def measure_point(
    key: jax.Array, network: Network, data: Data, sizes: tuple[tuple[int, int], ...], draws: int,
    strata: Any, one: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one line for each pair of sizes at one point of training."""
    parts, full = full_parts(network, data)
    classes = jnp.asarray(data.labels)
    norms = np.asarray(squares(full, jax.tree.map(jnp.zeros_like, full)), np.float64)
    most, number = max(m for _, m in sizes), data.num_classes
    lines = []
    for subset_size, size in sizes:
        sums = jax.tree.map(lambda x: jnp.zeros((len(RULES), *x.shape)), full)
        errors = []
        for index in tqdm(range(draws), desc=f"r {subset_size}, m {size}", leave=False):
            own = jax.random.fold_in(jax.random.fold_in(key, subset_size * 10_000 + size), index)
            keys = jax.random.split(own, 4)
            batches = draw_batches((keys[1], keys[2]), strata, one, size, most, number)
            chosen = draw(
                (keys[0], keys[3]), parts, classes, strata, batches, jnp.int32(size), subset_size, most,
                number,
            )  # fmt: skip
            sums, found = compare_gradients(sums, parts, full, *chosen)
            errors.append(np.asarray(found, np.float64))
        off = np.stack([
            np.asarray(squares(jax.tree.map(lambda s, k=i: s[k] / draws, sums), full), np.float64)
            for i in range(len(RULES))
        ])  # fmt: skip
        sizes_ = {"r": subset_size, "m": size, "draws": draws}
        lines.append(sizes_ | summarise_draws(np.stack(errors), off, norms))
    return lines


def measure(config: FewPicksConfig, lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Measure what is not among ``lines``; yield a line for each point and pair of sizes."""
    sources: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    fine: dict[tuple[str, int], np.ndarray] = {}
    made = {"command": command_line(__file__), "commit": COMMIT, **machine()}
    there = {(line["setting"], line["seed"], line["epochs"]) for line in lines}
    wanted = [
        (name, seed)
        for name, setting in SETTINGS.items()
        if config.only in name and (setting.source != "cifar" or config.cifar is not None)
        for seed in config.seeds
    ]
    bar = tqdm(total=len(wanted) * len(config.epochs), unit="point")
    for name, seed in wanted:
        bar.set_postfix_str(f"{name}, seed {seed}")
        if all((name, seed, epochs) in there for epochs in config.epochs):
            bar.update(len(config.epochs))
            continue
        setting = SETTINGS[name]
        if setting.source not in sources:
            sources[setting.source] = read_source(setting.source, config)
        inputs, labels = sources[setting.source]
        kind = setting.source, setting.split
        if kind not in fine:
            fine[kind] = fine_classes(inputs, labels, setting.split)
        rows = shaped_rows(fine[kind], setting.shape)
        data = Data(inputs[rows], fine[kind][rows], int(fine[kind].max()) + 1)
        strata = make_strata(data.labels, data.num_classes)
        one = make_strata(np.zeros_like(data.labels), 1)
        class_sizes = np.bincount(data.labels)
        about = {
            "setting": name, "classes": data.num_classes, "rows": len(rows),
            "smallest_class": int(class_sizes.min()), "largest_class": int(class_sizes.max()),
        }  # fmt: skip
        device_data = jnp.asarray(data.inputs), jnp.asarray(data.labels)
        init_key, key = jax.random.split(jax.random.key(seed))
        rng = np.random.default_rng(seed)
        network = init(init_key, data.inputs.shape[1], config.hidden, data.num_classes)
        each = len(rows) // 128
        whole = math.ceil(max(config.epochs))
        order = [rng.permutation(len(rows))[: each * 128].reshape(each, 128) for _ in range(whole)]
        path = np.concatenate(order) if order else np.empty((0, 128), int)
        taken = 0
        for epochs in config.epochs:
            upto = round(epochs * each)
            if upto > taken:
                network = epoch_steps(
                    network, *device_data, jnp.asarray(path[taken:upto]), config.learning_rate
                )
            taken = upto
            if (name, seed, epochs) not in there:
                own_key = jax.random.fold_in(key, upto)
                for line in measure_point(
                    own_key, network, data, setting.sizes, config.draws, strata, one
                ):
                    yield about | {"seed": seed, "epochs": epochs} | line | made
            bar.update()
    bar.close()


def main() -> None:
    """Read the command line, measure, and write the files."""
    with one_sentence("interrupted; the same command goes on with the points that are missing."):
        config = tyro.cli(FewPicksConfig, description=__doc__)
        with held_folder(config.out):
            kept = config.out / "few_picks.jsonl"
            if not kept.exists():
                new_folder(config.out)
            lines = read_lines(kept) if kept.exists() else []
            options = {"hidden": config.hidden, "learning_rate": config.learning_rate}
            if any({x: line[x] for x in options} != options for line in lines):
                raise UserError(
                    f"--out {config.out} holds points with another --hidden or --learning-rate, which "
                    "do not go together; choose another folder."
                )
            for line in measure(config, list(lines)):
                lines.append(line | options)
                append_line(kept, lines[-1])
            rows = ",\n".join(json.dumps(line) for line in lines)
            text = f'{{"rules": {json.dumps(RULES)},\n"lines": [\n{rows}\n]}}\n'
            (config.out / "few_picks.json").write_text(text, encoding="utf-8")
            found = f"{sources_of(lines)}\n{EXPLANATION}\n{report(lines)}"
            (config.out / "few_picks.md").write_text(found, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
