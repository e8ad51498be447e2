"""What crest_jax asks of a GPU: kernels and waits, counted without one, and seconds, timed on one.

    pip install -e ".[accelerator]"   # compilers for an H100 and a TPU v5e, 0.8 GB
    python -m experiments.benchmarks.accelerator count --out runs/counts
    python -m experiments.benchmarks.accelerator time --out runs/times

``count`` compiles the programs for both devices on this machine and counts what a call does; ``time``
runs the same programs, and whole selections, on the device that JAX uses. Writes ``lines.jsonl`` and
``page.md``.
"""

import dataclasses
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from crest_jax import ArraySource, Batch, CrestConfig, RegionConfig, cross_entropy, select_coreset
from crest_jax import crest as crest_selector
from crest_jax.algorithm import crest
from crest_jax.algorithm.compiled import Form
from crest_jax.algorithm.parts import Model, Parts, make_parts
from crest_jax.coresets import push
from crest_jax.coresets.by_class import oracle_of
from crest_jax.coresets.dense import _solve
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.mini_batch import medoids, most_rounds
from crest_jax.coresets.rules import NO_RULES
from crest_jax.data.chunks import draw_several
from crest_jax.data.pool import end_window, weighted_subset
from crest_jax.data.sampler import next_subset
from crest_jax.data.sources import _take
from crest_jax.flax import from_linen
from crest_jax.gradients import weighted_mean
from crest_jax.gradients.curvature import draw_probes
from crest_jax.loop import _several_steps
from crest_jax.types import untimed
from experiments.benchmarks import ahead_of_time
from experiments.harness.cli import UserError, one_sentence, parse
from experiments.harness.records import append_line, table
from experiments.harness.run_folder import COMMIT, held_new_folder
from experiments.models import build
from experiments.sweep import command_line, made_by

ROWS, CLASSES, SUBSETS, SUBSET, BATCH = 20_000, 10, 8, 256, 128
EUCLIDEAN = Metric("euclidean", 1.0)
TURNS = 10  # of push greedy, in one program
# The most kernels of an H100 that a call may take; none of them waits.
BUDGETS = {
    "draw": 3,
    "draw with exclusion": 3,
    "8 subsets: drawn": 50,
    "8 subsets: gathered": 2,
    "8 subsets: scored and chosen": 151,
    "8 steps with coresets: importance": 1_588,
    "8 steps with coresets: medoids": 2_116,
    "16 coresets in 100 classes": 1_000,
    "CRAIG, 20,000 rows in 10 classes": 1_300,
    "10 picks of push greedy, n = 20,000": 330,  # 30 each, and 30 to begin
    "10 picks of push greedy, n = 100,000": 330,
}


class Work(NamedTuple):
    """A program and what it is called with.

    Attributes:
      name: what it does.
      function: from ``jax.jit``.
      arguments: arrays, or their shapes where it is only counted.
      static: static arguments.
      loose: whether it may have loops of unknown length.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any] = {}  # noqa: RUF012, never changed in place
    loose: bool = False


@dataclasses.dataclass(frozen=True)
class AcceleratorConfig:
    """What to do."""

    out: Path = Path("runs/accelerator")
    """Folder of the results, which must be new."""
    only: str = ""
    """Regular expression of the names of the programs; all by default."""
    rounds: int = 20
    """Calls of each program that is timed; medians are reported."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.rounds < 1:
            raise UserError(f"--rounds is {self.rounds} but must be at least 1; 20 is usual.")
        try:
            re.compile(self.only)
        except re.error as error:
            raise UserError(
                f"--only is {self.only!r} but must be a regular expression ({error}); correct it."
            ) from error


def _network() -> tuple[Any, Any, dict[str, Any]]:
    """A ResNet-8: how it is called, its parameters and its state."""
    network = build("resnet8", CLASSES, width=8, input_shape=(28, 28, 1), mean=(120.0,), std=(60.0,))
    variables = dict(network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False))
    params = variables.pop("params")
    return from_linen(network), params, variables


def _training() -> tuple[ArraySource, Parts, Any, Model, Callable[[Any, Batch], tuple[Any, Any]]]:
    """What training with CREST needs on images: data, parts, state, model, step."""
    apply_fn, params, state = _network()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (ROWS, 28, 28, 1)).astype(np.uint8)
    source = ArraySource(images, np.arange(ROWS) % CLASSES)
    config = CrestConfig.recommended(steps=1_000, batch_size=BATCH)
    config = dataclasses.replace(config, subset_size=SUBSET, select_from=None)
    region = RegionConfig(max_coresets=SUBSETS)
    kept = dataclasses.replace(config, picks="medoids", region=region, pause_above=1.0)
    given: Any = {"loss_fn": cross_entropy, "embed_fn": None, "phase": untimed}
    parts = make_parts(apply_fn, source, kept, **given)

    def step(model: Model, batch: Batch) -> tuple[Model, Any]:
        def loss(params: Any) -> tuple[Any, Any]:
            logits, new = apply_fn(params, model.state, batch.inputs, train=True, rng=None)
            return weighted_mean(cross_entropy(logits, batch.labels), batch.weights), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(model.params)
        return Model(jax.tree.map(lambda p, g: p - 0.01 * g, model.params, gradient), new), value

    begun = crest.init(parts, jax.random.key(0), params, state)
    return source, parts, begun, Model(params, state), step


def fresh_steps(model: Model, step: Any) -> Iterator[Work]:
    """Yield steps that each choose a coreset of their own."""
    apply_fn, _, _ = _network()
    source = ArraySource(np.zeros((ROWS, 28, 28, 1), np.uint8), np.arange(ROWS) % CLASSES)
    for picks in ("importance", "medoids"):
        config = CrestConfig.recommended(steps=1_000, batch_size=BATCH)
        config = dataclasses.replace(config, subset_size=SUBSET, select_from=None, picks=picks)
        traced = crest_selector(apply_fn, source, config).traced
        assert traced is not None
        state = crest_selector(apply_fn, source, config).init(jax.random.key(0), *model)
        fixed, changing = traced.open(state)
        rounds = most_rounds(1 / CLASSES, SUBSET, BATCH, CLASSES)
        fixed = dataclasses.replace(fixed, form=Form(CLASSES, 2**33, None, rounds))
        several = functools.partial(
            _several_steps.__wrapped__,  # type: ignore[attr-defined]
            traced.inside,
            step,
            lambda model: model,
            None,
            SUBSETS,
        )
        yield Work(f"8 steps with coresets: {picks}", jax.jit(several), (fixed, changing, model))


def training_programs() -> Iterator[Work]:
    """Yield what a training with CREST runs."""
    source, parts, state, model, step = _training()
    rules, pool = parts.rules, state.pool
    strata, left_at = rules.strata, pool.exclusion.inactive.left_at
    draw = jax.jit(next_subset, static_argnames="size")
    yield Work("draw", draw, (pool.stream, strata), {"size": 2 * SUBSET})
    drawn = (pool.stream, strata), {"size": 2 * SUBSET, "in_play": pool.in_play}
    yield Work("draw with exclusion", draw, *drawn)
    ended = pool.stream, pool.in_play, pool.exclusion, strata, rules.needed
    yield Work("end of a window", end_window, ended, {"cooldown": 4, "keep": 0.25}, loose=True)
    several = weighted_subset, SUBSETS, (SUBSET, 0.25), pool.stream, strata, pool.in_play, left_at
    yield Work("8 subsets: drawn", draw_several, several)
    rows = jnp.arange(SUBSETS * SUBSET, dtype=jnp.int32)
    taken = (source.arrays, rows, ROWS, 0, None)
    yield Work("8 subsets: gathered", _take, taken)
    form = Form(CLASSES, 2**33, None, most_rounds(1 / CLASSES, SUBSET, BATCH, CLASSES))
    score = (
        *model, source.take(rows), rows.reshape(SUBSETS, SUBSET), strata.classes,
        (state.buffer.indices, state.buffer.weights), jnp.arange(SUBSETS, dtype=jnp.int32),
        pool.exclusion, state.all_finite, None,
    )  # fmt: skip
    scored = parts.compiled.score_and_select
    yield Work("8 subsets: scored and chosen", scored, score, {"form": form})
    some, ones = source.take(rows[:SUBSET]), jnp.ones(SUBSET)
    yield Work("loss of the probe", parts.compiled.probe_loss, (*model, some, ones))
    yield Work("check", parts.compiled.errors, (state.region, *model, some))
    probes = draw_probes(jax.random.key(1), model.params, 1)
    yield Work("curvature", parts.compiled.fit, (probes, *model, some, ones, None))
    batch = Batch(*source.take(rows[:BATCH]), jnp.ones(BATCH), rows[:BATCH])
    yield Work("training step", jax.jit(step), (model, batch))
    batches = jax.tree.map(lambda x: jnp.stack([x] * 8), batch)
    chunk = jax.jit(lambda model, batches: jax.lax.scan(step, model, batches))
    yield Work("8 training steps", chunk, (model, batches))
    yield from fresh_steps(model, step)


def selection_programs() -> Iterator[Work]:
    """Yield what choosing from embeddings runs."""
    rng = np.random.default_rng(0)
    for number, rows, classes in ((16, 500, 100), (SUBSETS, SUBSET, CLASSES)):
        x = jnp.asarray(rng.normal(size=(number, rows, classes)), jnp.float32)
        labels = jnp.asarray(rng.integers(0, classes, (number, rows)), jnp.int32)
        rounds = most_rounds(1 / classes, rows, BATCH, classes)
        form = {"size": BATCH, "num_classes": classes, "rounds": rounds}
        choose = jax.vmap(lambda x, labels, form=form: medoids(x, labels, **form)[:2])
        yield Work(f"{number} coresets in {classes} classes", jax.jit(choose), (x, labels))
    members = ROWS // CLASSES
    points = Points((jnp.asarray(rng.normal(size=(10, CLASSES, members)), jnp.float32),))
    solve = functools.partial(
        _solve.__wrapped__, clients=members, rounds=members // 10, metric=EUCLIDEAN
    )
    full = [jnp.full((1, CLASSES), number) for number in (members, members // 10)]
    craig = points, *full, NO_RULES, None
    yield Work("CRAIG, 20,000 rows in 10 classes", jax.jit(solve), craig)
    for rows, width, number in ((20_480, 10, 2_000), (100_352, 64, 10_000)):
        name = f"10 picks of push greedy, n = {rows // 1000 // 10 * 10},000"
        turns = jax.jit(functools.partial(_push_turns, number))
        shapes = jax.eval_shape(functools.partial(_push_state, number), jnp.zeros((rows, width)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        x = jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)
        yield Work(name, turns, (x, zeros))


def _oracle(x: jax.Array) -> Any:
    return oracle_of(EUCLIDEAN, Points((x,)), None, jnp.ones(x.shape[0], bool), None)


def _push_state(number: int, x: jax.Array) -> Any:
    return push.begin(_oracle(x), jnp.ones(x.shape[0], bool), number)[1]


def _push_turns(number: int, x: jax.Array, state: Any) -> Any:
    oracle = _oracle(x)
    turn = lambda _, state: push.turn(oracle, jnp.float32(9), state, jnp.int32(number), 64)  # noqa: E731
    return jax.lax.fori_loop(np.int32(0), np.int32(TURNS), turn, state)


def programs(only: str) -> Iterator[Work]:
    """Yield all programs whose names match."""
    for made in (training_programs, selection_programs):
        yield from (work for work in made() if re.search(only, work.name))


def counted(config: AcceleratorConfig) -> Iterator[dict[str, Any]]:
    """Count every program on every kind of device."""
    for work in programs(config.only):
        for kind in ahead_of_time.KINDS:
            found = ahead_of_time.count(kind, work.function, *work.arguments, **work.static)
            yield {"name": work.name, "device": kind, "loose": work.loose, **found._asdict()}


def _median(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    began = time.perf_counter()
    jax.block_until_ready(call())
    first, seconds = time.perf_counter() - began, []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    ends = {"low": min(seconds), "high": max(seconds)}
    return {"median": float(np.median(seconds)), **ends, "first": first}


def _indices(select: Callable[[], Any]) -> jax.Array:
    return select().indices


def timed(config: AcceleratorConfig) -> Iterator[dict[str, Any]]:
    """Time every program, and whole selections."""
    device = jax.devices()[0].device_kind
    for work in programs(config.only):
        call = functools.partial(work.function, *work.arguments, **work.static)
        yield {"name": work.name, "device": device, **_median(call, config.rounds)}
    rng = np.random.default_rng(0)
    for rows, width, size, classes in (
        (20_000, 10, 2_000, 10), (5_000, 10, 500, 1), (20_000, 10, 2_000, 1), (100_000, 64, 10_000, 1),
    ):  # fmt: skip
        name = f"select_coreset, {rows:,} x {width}, {size:,} picks, {classes} class(es)"
        if re.search(config.only, name):
            x = jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)
            labels = np.arange(rows) % classes
            select = functools.partial(select_coreset, x, size, labels=labels)
            yield {"name": name, "device": device, **_median(functools.partial(_indices, select), 3)}
    square = rng.normal(size=(512, 512)).astype(np.float32)
    exact = square.astype(np.float64) @ square
    for precision in ("default", "high", "highest"):
        found = np.asarray(jnp.dot(square, square, precision=precision), np.float64)
        error = float(np.abs(found - exact).max() / np.abs(exact).max())
        yield {"name": f"error of a product, precision {precision}", "device": device, "error": error}


def count_page(lines: list[dict[str, Any]]) -> str:
    """Return the table of counts, with the budgets."""
    rows = []
    for line in (line for line in lines if line["device"] == "h100"):
        tpu = next(x for x in lines if x["name"] == line["name"] and x["device"] == "v5e")
        budget = BUDGETS.get(line["name"])
        rows.append(
            [
                line["name"],
                f"{line['kernels']:,}",
                "-" if budget is None else f"{budget:,}",
                str(line["waits"]),
                f"{line['temporary_bytes'] / 1e6:.1f}",
                f"{line['compile_seconds']:.1f}",
                f"{tpu['compile_seconds']:.1f}",
            ]
        )
    header = ["program", "kernels", "at most", "waits", "working MB", "compile s", "TPU v5e compile s"]
    return table(header, rows)


def time_page(lines: list[dict[str, Any]]) -> str:
    """Return the table of times."""
    rows = [
        [
            line["name"],
            *(f"{1e3 * line[name]:.2f}" for name in ("median", "low", "high")),
            f"{line['first']:.1f}",
        ]
        for line in lines
        if "median" in line
    ]
    errors = [[line["name"], f"{line['error']:.1e}"] for line in lines if "error" in line]
    times = table(["program", "median ms", "low", "high", "first call s"], rows)
    return f"{times}\n\n{table(['', 'relative error'], errors)}" if errors else times


def main() -> None:
    """Read the command line, count or time, and write the files."""
    with one_sentence("interrupted; start again."):
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name not in ("count", "time", "-h", "--help"):
            raise UserError(f"the first word is {name!r} but must be count or time; choose one.")
        what: Literal["count", "time"] = "count" if name == "count" else "time"
        argv = ["--help"] if name.startswith("-") else sys.argv[2:]
        config = parse(AcceleratorConfig, default=AcceleratorConfig(), description=__doc__, argv=argv)
        missing = ahead_of_time.missing_packages() if what == "count" else []
        if missing:
            raise UserError(
                f"{missing[0]} is not installed but counting needs it; pip install -e '.[accelerator]'."
            )
        if what == "count":
            ahead_of_time.use_compilers()
        with held_new_folder(config.out):
            lines = []
            found = counted(config) if what == "count" else timed(config)
            for line in tqdm(found, desc=what, unit="program"):
                lines.append(line | {"commit": COMMIT})
                append_line(config.out / "lines.jsonl", lines[-1])
            page = count_page(lines) if what == "count" else time_page(lines)
            made = f"`{command_line(__file__, None)}` at commit {COMMIT}, compiled on a CPU"
            made = made if what == "count" else made_by(__file__, None, lines, 1)
            (config.out / "page.md").write_text(f"{made}\n\n{page}\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
