"""The main job end to end: run folders, resuming, counters, presets, and its errors."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from small_run import ROOT, SMALL, STEPS, command, options

from crest_jax import Batch, CrestConfig, ExclusionConfig, RegionConfig
from experiments import compare, train
from experiments.config import METHODS, TrainConfig
from experiments.data import Dataset
from experiments.harness import build
from experiments.harness.checkpoints import sha256
from experiments.harness.cli import UserError, as_options, parse
from experiments.harness.options import (
    BaselineConfig,
    CrestOptions,
    ExclusionOptions,
    RegionOptions,
    RunConfig,
)
from experiments.harness.records import read_lines
from experiments.harness.run_folder import read_network
from experiments.harness.steps import take_steps
from experiments.harness.timing import PHASES, TRAINING, PhaseTimer
from experiments.presets import PAPER, SETTINGS, with_rate


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict[str, Any]]:
    config = dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("runs") / "whole")
    return config, train.run(config)


def test_run_folder_holds_what_happened(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    config, metrics = finished
    assert json.loads((config.out / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == STEPS
    assert metrics["test_accuracy"] > 0.5
    assert metrics["class_names"] == [str(digit) for digit in range(10)]
    assert set(metrics["seconds"]) == set(PHASES)
    events = read_lines(config.out / "events.jsonl")
    evaluations = [row for row in events if row["kind"] == "evaluation"]
    assert [row["step"] for row in evaluations] == [17, 34, 52, 69]
    assert evaluations[-1]["accuracy"] == metrics["test_accuracy"]
    counts = np.load(config.out / "picks.npz")["counts"]
    assert counts.shape == (20, 1442)
    assert (counts.sum(axis=1) // 64).tolist() == np.bincount(np.arange(STEPS) * 20 // STEPS).tolist()
    selections = [row for row in events if row["kind"] == "selection"]
    assert sum(row["coresets"] for row in selections) == metrics["num_selected"]
    begun = [row for row in selections if row["began_region"]]
    assert len(begun) == metrics["num_regions"] > 1
    assert begun[0]["step"] == round(0.2 * STEPS)
    assert [row["step"] for row in selections if row["reason"] == "span_end"] == [round(0.8 * STEPS)]


def test_a_finished_run_keeps_its_network(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    config, metrics = finished
    made = build.make_program(build.shared(config))
    state = made.init(jax.random.key(1))
    params, model_state = read_network(config.out, state.params, state.model_state)
    assert sha256(params) == metrics["params_sha256"]
    assert made.evaluate(params, model_state, made.held_out)["accuracy"] == metrics["test_accuracy"]
    with pytest.raises(UserError, match=r"holds no network\.msgpack"):
        read_network(config.out.parent, state.params, state.model_state)
    damaged = config.out.parent / "damaged"
    damaged.mkdir()
    whole = (config.out / "network.msgpack").read_bytes()
    (damaged / "network.msgpack").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"network\.msgpack cannot be read"):
        read_network(damaged, state.params, state.model_state)


def test_counted_passes_follow_from_the_events(
    finished: tuple[TrainConfig, dict[str, Any]],
) -> None:
    config, metrics = finished
    selections = [r for r in read_lines(config.out / "events.jsonl") if r["kind"] == "selection"]
    regions = metrics["num_regions"]
    checks = regions + sum(row["rho"] is not None for row in selections)
    assert metrics["forward"] == {
        "step": STEPS * 64,
        "selection": metrics["num_selected"] * 256,
        "curvature": checks * 2 * 64,  # a diagonal for a region, a product at a check
        "check": checks * 64,
        "evaluation": 4 * 355,
    }
    assert metrics["backward"] == {
        "step": STEPS * 64, "selection": 0, "curvature": checks * 2 * 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    "method",
    ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("crest", "dynamic_pruning"))],
)
def test_steps_in_one_program_give_the_run_of_single_steps(method: Any, tmp_path: Path) -> None:
    """Chunks end at checks, evaluations and checkpoints; what is noted is the same."""
    own = dataclasses.replace(SMALL.for_method(method), out=tmp_path / "single")
    machine = dataclasses.replace(own.machine, scan=16)
    metrics = [
        train.run(c) for c in (own, dataclasses.replace(own, out=tmp_path / "many", machine=machine))
    ]
    for name in ("forward", "backward"):
        assert metrics[0][name] == metrics[1][name]
    assert metrics[0]["test_loss"] == pytest.approx(metrics[1]["test_loss"], rel=1e-4)
    lines = [read_lines(tmp_path / name / "events.jsonl") for name in ("single", "many")]
    assert [(row["kind"], row["step"]) for row in lines[0]] == [
        (row["kind"], row["step"]) for row in lines[1]
    ]
    counts = [np.load(tmp_path / name / "picks.npz")["counts"] for name in ("single", "many")]
    np.testing.assert_array_equal(*counts)


@pytest.mark.parametrize("method", ["crest", "random", "craig", "top_loss", "dynamic_pruning"])
def test_a_run_cut_off_anywhere_resumes_bit_for_bit(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: dict[str, list[Any]] = {"whole": [], "cut": []}
    whole = dataclasses.replace(SMALL.for_method(method), out=tmp_path / "whole")
    cut = dataclasses.replace(whole, out=tmp_path / "cut")

    def spy(name: str, stop: int | None) -> None:
        def step(selection: Any, counted: Any, selected: Any, trained: Any, number: int) -> Any:
            before = np.asarray(trained.picks)
            found = take_steps(selection, counted, selected, trained, number)
            batches[name].append((np.asarray(found[1].picks) - before, np.asarray(found[2])))
            if stop is not None and len(batches[name]) == stop:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(train, "take_steps", step)

    spy("whole", None)
    expected = train.run(whole)
    monkeypatch.undo()
    spy("cut", 41)  # after the checkpoint of step 34
    with pytest.raises(KeyboardInterrupt):
        train.run(cut)
    with (cut.out / "events.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "st')  # a line cut off by the kill
    del batches["cut"][34:]
    monkeypatch.undo()
    spy("cut", None)
    said: list[str] = []
    resumed = train.run(dataclasses.replace(cut, resume=True), said.append)
    assert said == [f"resuming {cut.out} at step 34 of 69."]
    assert resumed["params_sha256"] == expected["params_sha256"]
    for name in ("forward", "backward", "test_accuracy"):
        assert resumed[name] == expected[name]
    assert len(batches["cut"]) == STEPS
    for (rows, weights), (other, others) in zip(batches["whole"], batches["cut"], strict=True):
        np.testing.assert_array_equal(rows, other)
        np.testing.assert_array_equal(weights, others)
    strip = lambda row: {k: v for k, v in row.items() if k != "seconds"}  # noqa: E731
    lines = [[strip(r) for r in read_lines(c.out / "events.jsonl")] for c in (whole, cut)]
    assert lines[0] == lines[1]
    counts = [np.load(c.out / "picks.npz")["counts"] for c in (whole, cut)]
    np.testing.assert_array_equal(*counts)


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_parameters(
    finished: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, out=tmp_path / "killed")
    arguments = [sys.executable, "-m", "experiments.train", *options(config)]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    events = config.out / "events.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if events.exists() and '"step": 34' in events.read_text():
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    result = command(*options(config), "--resume")
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout + result.stderr
    metrics = json.loads((config.out / "metrics.json").read_text())
    assert metrics["params_sha256"] == finished[1]["params_sha256"]
    again = command(*options(config), "--resume")
    assert again.returncode == 0
    assert "nothing to do" in again.stdout + again.stderr


def test_resume_without_a_checkpoint_starts_afresh_and_says_so(
    finished: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    said: list[str] = []
    config = dataclasses.replace(SMALL, out=tmp_path / "new", resume=True)
    metrics = train.run(config, said.append)
    assert said == [f"{config.out} holds no checkpoint yet; starting afresh."]
    assert metrics["params_sha256"] == finished[1]["params_sha256"]


@pytest.mark.slow
def test_seed_and_method_change_the_parameters(
    finished: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    hashes = {finished[1]["params_sha256"]}
    for method, seed in (("crest", 1), ("stratified", 0), ("random", 0)):
        out = tmp_path / f"{method}{seed}"
        config = dataclasses.replace(SMALL.for_method(method), seed=seed, out=out)
        hashes.add(train.run(config)["params_sha256"])
    assert len(hashes) == 4


def test_training_step_has_one_backward_pass() -> None:
    program = train.make_program(train.shared(SMALL))
    state = program.init(jax.random.key(0))
    examples = program.train.take(jnp.arange(64))
    batch = Batch(*examples, jnp.ones(64), jnp.arange(64))
    text = str(jax.make_jaxpr(program.train_step)(state, batch))
    # Three layers: three products forward; backward three for the kernels and two for the inputs.
    assert text.count("dot_general") == 8


def test_timer_sets_compilation_apart_and_adds_up() -> None:
    timer = PhaseTimer()

    def work(x: jax.Array) -> jax.Array:
        return jax.jit(lambda x: jnp.sin(x) @ x.T)(x)

    argument = jnp.ones((7, 3))
    timer.start_clock()
    start = time.perf_counter()
    timer("step", work, argument)
    first = dict(timer.seconds)
    timer("check", time.sleep, 0.05)
    elapsed = time.perf_counter() - start
    assert first["compile"] > 0
    assert 0.05 <= timer.seconds["check"] < elapsed
    assert 0.9 * elapsed <= sum(timer.seconds.values()) <= elapsed
    totals = timer.totals()
    assert sum(totals.values()) == pytest.approx(time.perf_counter() - start, rel=0.05)
    phases = sum(totals[name] for name in TRAINING)
    assert phases < timer.training < phases + 0.1 * elapsed
    other = timer.totals()["other"]
    start = time.perf_counter()
    jax.block_until_ready(work(jnp.ones((5, 3))))  # outside all phases
    spent = time.perf_counter() - start
    after = timer.totals()
    assert after["compile"] - totals["compile"] > 0.5 * spent
    assert after["other"] - other < 0.5 * spent


def test_compare_gives_methods_their_own_learning_rates(tmp_path: Path) -> None:
    config = tyro.cli(
        compare.CompareConfig,
        args=[
            *("--methods", "random", "crest", "--rates", "crest", "0.3"),
            *("--optim.learning-rate", "0.2", "--out", str(tmp_path)),
        ],
    )
    rates = {options.method: options.optim.learning_rate for options in compare.plan(config)}
    assert rates == {"random": 0.2, "crest": 0.3}
    for rates, said in (({"full": 0.1}, r"full 0\.1"), ({"random": math.inf}, "random inf")):
        with pytest.raises(UserError, match=rf"--rates has {said} but must name one of --methods"):
            compare.CompareConfig(methods=("random",), rates=rates)


def test_compare_writes_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(SMALL, out=tmp_path / "compared")
    compare.main([*options(config), "--seeds", "0", "1", "--full-seeds", "1"])
    text = (config.out / "summary.md").read_text()
    said = capsys.readouterr().out
    assert f"Picture: {config.out / 'accuracy.png'}; all columns: {config.out / 'summary.md'}." in said
    shown, head = (
        [[cell.strip() for cell in line.split("|")] for line in lines.splitlines() if "|" in line]
        for lines in (said, text)
    )
    places = [head[0].index(name) for name in shown[0]]  # a choice of the file's columns, all rows
    assert shown[2:] == [[row[place] for place in places] for row in head[2:]]
    assert 5 <= len(shown[0]) < len(head[0])
    assert f"Most accurate after {STEPS} steps: " in said
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if "|" in line}
    assert {"full", "random", "stratified", "crest"} <= set(rows)
    assert rows["full"][2].strip() == "1"
    runs = read_lines(config.out / "summary.jsonl")
    values = [100 * run["test_accuracy"] for run in runs if run["method"] == "crest"]
    assert rows["crest"][4].strip().startswith(f"{np.mean(values):.2f} ±")
    assert (config.out / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    before = (config.out / "crest-seed0" / "metrics.json").stat().st_mtime_ns
    compare.main([*options(config), "--seeds", "0", "1", "--full-seeds", "1"])
    assert (config.out / "crest-seed0" / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_first_command_of_the_readme_ends_in_time_and_shows_the_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    compare.main(["--setting", "first_run", "--out", str(tmp_path / "first")])
    assert time.perf_counter() - start < 360
    runs = read_lines(tmp_path / "first" / "summary.jsonl")
    assert {(run["method"], run["seed"]) for run in runs} == {
        (method, seed) for method in ("stratified", "crest") for seed in range(10)
    }
    assert all(run["test_accuracy"] > 0.8 for run in runs)
    said = capsys.readouterr().out
    assert "Most accurate after 308 steps: crest" in said
    assert "(10 seeds): clearly ahead." in said


STAND_INS = {
    "cifar10_resnet20": ((32, 32, 3), 10),
    "cifar100_resnet18": ((32, 32, 3), 100),
    "tinyimagenet_resnet50": ((64, 64, 3), 200),
}


def test_every_setting_of_the_paper_is_dry_run() -> None:
    # test_language runs the one on SNLI's files
    assert set(PAPER) == set(STAND_INS) | {"snli_roberta"}
    for setting in PAPER.values():
        assert (setting.run.preset, setting.run.budget) == ("paper", 0.1)


SLOW_SETTINGS = {"tinyimagenet_resnet50", "cifar100_resnet18"}  # a minute of compilation each


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_SETTINGS else n for n in STAND_INS],
)
def test_a_setting_of_the_paper_takes_two_steps_on_stand_in_arrays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, classes = STAND_INS[name]
    run = PAPER[name].run
    assert (run.epochs, run.batch_size, run.optim.learning_rate, run.optim.warmup) == (
        200,
        128,
        0.1,
        0.1,
    )
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, 16).astype(np.int32)
    channels = shape[-1]
    stand_in = Dataset(
        name=run.dataset, train_inputs=inputs, train_labels=labels, test_inputs=inputs,
        test_labels=labels, validation_inputs=None, validation_labels=None, num_classes=classes,
        mean=(120.0,) * channels, std=(60.0,) * channels, augment=True,
        class_names=tuple(map(str, range(classes))),
    )  # fmt: skip
    monkeypatch.setattr(build, "load_data", lambda *_: stand_in)
    config = dataclasses.replace(
        run, epochs=1, budget=1.0, batch_size=8, run=RunConfig(evaluations=1, checkpoints=1),
        crest=CrestOptions(subset_size=16), out=tmp_path / "run",
    )  # fmt: skip
    metrics = train.run(config)
    train.make_program.cache_clear()
    assert metrics["steps"] == 2
    assert metrics["num_regions"] >= 1
    assert metrics["settings"]["region"]["smoothing"] == "paper"
    assert np.isfinite(metrics["test_loss"])


@pytest.mark.parametrize("span", [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1), (float("nan"), 0.5)])
def test_a_span_that_does_not_rise_within_the_run_is_refused(span: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"--crest.select-span is .* must be two rising shares"):
        CrestOptions(select_span=span)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.1, float("nan")])
def test_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(UserError, match=r"--budget is .* must lie in \(0, 1\]"):
        dataclasses.replace(SMALL, budget=budget)


def test_occupied_and_changed_folders_are_refused(
    finished: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config, _ = finished
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train.run(config)
    with pytest.raises(UserError, match=r"seed = 5 but the run in .* has 0"):
        train.run(dataclasses.replace(config, seed=5, resume=True))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        train.run(dataclasses.replace(SMALL, out=tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--budget", "1.5"], "--budget is 1.5 but must lie in (0, 1]"),
        (["--out", "/proc/none/run"], "--out /proc/none/run cannot be written"),
        (["--optim.warmup", "0.6"], "--optim.warmup is 0.6 but must lie in"),
        (["--dataset", "fashion_mnist", "--data.dir", "/nowhere"], "/nowhere"),
        (["--data.evaluate-on", "validation"], "has no validation rows"),
        (["--crest.subset-size", "20000"], "--crest.subset-size is 20000 but the data hold"),
        (
            ["--crest.region.tau", "-1"],
            "error: --crest.region.tau is -1.0 but must lie in (0, 1e+06]; choose",
        ),
    ],
)
def test_bad_options_end_with_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["train", "--out", str(out), *arguments])
    with pytest.raises(SystemExit, match=re.escape(sentence)) as ended:
        train.main()
    assert len(str(ended.value).splitlines()) == 1
    assert not out.exists()


def test_a_bad_option_ends_the_script_with_one_line_and_a_status(tmp_path: Path) -> None:
    result = command("--out", str(tmp_path / "run"), "--budget", "1.5")
    assert result.returncode != 0
    assert result.stderr.startswith("error: --budget is 1.5 but must lie in (0, 1]")
    assert len(result.stderr.splitlines()) == 1


NUMBERS = {  # option: what of these works, or is refused by another rule
    "epochs": (), "budget": (), "batch-size": (), "seed": ("0",), "network.width": (),
    "optim.learning-rate": (), "optim.momentum": ("0",), "optim.weight-decay": ("0",),
    "optim.warmup": ("0",), "run.evaluations": (), "run.checkpoints": (),
    "machine.step-timeout": (), "machine.devices": ("0",), "machine.processes": (), "machine.scan": (),
    "machine.process": ("-1", "0"),  # refused where the processes begin
    "baselines.reselections": (), "baselines.pool-factor": (), "baselines.scoring-networks": (),
    "text.max-tokens": (), "text.dropout": ("0",), "crest.subset-size": (),
    "crest.pause-above": (),
    "crest.region.probe-size": (),
    "crest.region.tau": (), "crest.region.interval-multiplier": (), "crest.region.max-interval": (),
    "crest.region.coresets-per-interval": (), "crest.region.max-coresets": (),
    "crest.exclusion.threshold": (),
    "crest.exclusion.window": (), "crest.exclusion.keep-fraction": ("0",), "crest.exclusion.until": (),
    "crest.exclusion.cooldown": (),
}  # fmt: skip
ON_TEXT = ["--dataset", "rotten_tomatoes", "--model", "minilm"]


@pytest.mark.parametrize("option", NUMBERS)
def test_every_number_out_of_range_is_refused_by_its_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, more = 0, ON_TEXT if option.startswith("text.") else []
    for value in ("-1", "0", "nan", "inf"):
        if value in NUMBERS[option]:
            tyro.cli(TrainConfig, args=[f"--{option}", value, *more])
            continue
        try:
            with pytest.raises(UserError, match=rf"^--{option} is \S+ but must .*; .*\.$") as found:
                tyro.cli(TrainConfig, args=[f"--{option}", value, *more])
            assert len(str(found.value)) < 200
            refused += 1
        except SystemExit:  # no whole number
            assert option in capsys.readouterr().err
            assert value in ("nan", "inf")
    assert refused >= 2 - len(NUMBERS[option])


def test_no_number_is_forgotten() -> None:
    numbers = (int, float, int | None, float | None, int | Literal["never"] | None)

    def numeric(kind: type, prefix: str = "") -> set[str]:
        found = set()
        for name, hint in get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint):
                found |= numeric(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
            elif hint in numbers:
                found.add(prefix + name.replace("_", "-"))
        return found

    assert numeric(TrainConfig) == set(NUMBERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--optim.nesterov", "--optim.momentum", "0"],
            r"^--optim.momentum is 0\.0 but must be above 0 with --optim.nesterov",
        ),
        (
            ["--crest.exclude", "False", "--crest.exclusion.window", "9"],
            r"^--crest.exclude is False but --crest.exclusion is given too",
        ),
        (["--seed", "4294967296"], r"^--seed is 4294967296 but must lie in \[0, 4294967295\]"),
        (
            ["--batch-size", "9", "--crest.subset-size", "8"],
            "^--batch-size is 9 .*; raise --crest.subset-size",
        ),
        (
            ["--crest.region.curvature-of", "("],
            r"^--crest.region.curvature-of is '\(' but must be a regular expression",
        ),
    ],
)
def test_options_that_do_not_fit_each_other_are_named(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tyro.cli(TrainConfig, args=options)


def test_options_of_the_command_line_are_those_of_code() -> None:
    found = tyro.cli(TrainConfig, args=["--crest.region.tau", "0.2", "--budget", "0.3"])
    assert found == TrainConfig(budget=0.3, crest=CrestOptions(region=RegionOptions(tau=0.2)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text.max-tokens", "64"], "--text.max-tokens has no effect here .* is no text"),
        (["--data.dir", "x"], "--data.dir has no effect here .* fashion_mnist_12k is read"),
        (["--optim.name", "adamw", "--optim.momentum", "0.5"], "--optim.momentum has no effect here"),
        (["--model", "mlp", "--network.imagenet-stem"], "--network.imagenet-stem has no effect here"),
        ([*ON_TEXT, "--network.width", "8"], "--network.width has no effect here"),
        ([*ON_TEXT, "--data.augment", "True"], "--data.augment has no effect here"),
        ([*ON_TEXT, "--machine.shard", "True"], "--machine.shard has no effect here"),
    ],
)
def test_options_that_data_network_or_optimizer_do_not_read_are_refused(
    arguments: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        tyro.cli(TrainConfig, args=arguments)


@pytest.mark.parametrize(
    ("changes", "readers"),
    [
        ({"crest": CrestOptions(region=RegionOptions(tau=0.2))}, {"crest"}),
        ({"preset": "paper"}, {"crest", "dynamic_pruning", "dynamic_pruning_random"}),
        (
            {"crest": CrestOptions(exclusion=ExclusionOptions(window=9))},
            {"crest", "dynamic_pruning", "dynamic_pruning_random"},
        ),
        ({"baselines": BaselineConfig(pool_factor=4)}, {"top_loss"}),
        ({"baselines": BaselineConfig(scoring_networks=4)}, {"el2n"}),
        (
            {"baselines": BaselineConfig(reselections=4)},
            {"craig", "gradmatch", "gradmatch_batch", "glister"},
        ),
    ],
)
def test_options_that_a_method_does_not_read_are_refused_before_any_work(
    changes: dict[str, Any], readers: set[str], tmp_path: Path
) -> None:
    plain = TrainConfig(out=tmp_path / "run")
    for method in METHODS:
        config = dataclasses.replace(plain, method=method, **changes)
        said = config.unused_by([method])
        assert (said is None) == (method in readers)
        assert config.for_method(method).unused_by([method]) is None
        if method in readers:
            assert config.for_method(method) == config
    refused = dataclasses.replace(plain, method="random", **changes)
    with pytest.raises(UserError, match="has no effect here and must be left out; random does not"):
        train.run(refused)
    assert not refused.out.exists()


def test_the_presets_are_those_of_the_library() -> None:
    for count, steps in ((60_000, 470), (1_442, 69), (500, 4_000)):
        recommended = TrainConfig().crest_config(steps, count)
        assert recommended == CrestConfig.recommended(
            steps=steps, first_drop=round(0.5 * steps), num_examples=count, batch_norm=True
        )
        paper = TrainConfig(preset="paper").crest_config(steps, count)
        assert paper == CrestConfig.paper(steps=steps, num_examples=count, warmup=round(0.1 * steps))
    kept = TrainConfig(crest=CrestOptions(regions=True)).crest_config(470, 100).region
    assert kept == RegionConfig(probe_size=100, reference_step=47)
    given = TrainConfig(crest=CrestOptions(region=RegionOptions(tau=0.2))).crest_config(470, 1000)
    assert given.region == RegionConfig(tau=0.2, reference_step=47)
    fresh = TrainConfig(preset="paper", crest=CrestOptions(regions=False)).crest_config(470, 1000)
    assert fresh.region is None
    whole = TrainConfig(crest=CrestOptions(select_span=(0.0, 1.0))).crest_config(100, 500)
    assert (whole.select_from, whole.select_until) == (None, None)
    never = ExclusionOptions(cooldown="never", threshold=0.3)
    own = TrainConfig(crest=CrestOptions(exclusion=never)).crest_config(100, 500).exclusion
    assert own == ExclusionConfig(0.3, 100, None, 0.25, 50)
    assert TrainConfig(crest=CrestOptions(exclude=False)).crest_config(100, 500).exclusion is None


def test_help_fits_two_screens_and_shows_groups(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*topic: str) -> str:
        with pytest.raises(SystemExit):
            parse(TrainConfig, default=TrainConfig(), description="Doc.", argv=["--help", *topic])
        return capsys.readouterr().out

    short, crest, whole = told(), told("crest"), told("all")
    assert len(short.splitlines()) < 80
    assert "--method" in short
    assert "--crest.region.tau" not in short
    assert "--help data | network | optim | crest | baselines | run | machine | text | all" in short
    assert "--crest.region.tau" in crest
    assert "--crest.exclusion.window" in crest
    assert "--epochs" not in crest
    assert "--epochs" in whole
    assert "--text.dropout" in whole
    with pytest.raises(UserError, match="--help nothing names no group"):
        told("nothing")


def test_a_setting_is_where_options_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr(train, "run", lambda config: seen.append(config) or sys.exit(0))
    monkeypatch.setattr("sys.argv", ["train", "--setting", "short_mlp", "--epochs", "3"])
    with pytest.raises(SystemExit):
        train.main()
    assert seen == [dataclasses.replace(SETTINGS["short_mlp"].run, epochs=3)]
    monkeypatch.setattr("sys.argv", ["train", "--setting", "nowhere"])
    with pytest.raises(SystemExit, match="error: --setting is nowhere but must be one of short_resnet"):
        train.main()


def test_a_library_sentence_names_options_but_no_words() -> None:
    said = "tau is 2 but weighted losses need batch_size below 'subset_size' in /batch_size; lower tau."
    expected = "--crest.region.tau is 2 but weighted losses need --batch-size below 'subset_size' in "
    assert as_options(said) == expected + "/batch_size; lower tau."


def test_a_diverged_run_names_the_step(tmp_path: Path) -> None:
    config = with_rate(dataclasses.replace(SMALL.for_method("random"), out=tmp_path / "run"), 1e30)
    with pytest.raises(
        FloatingPointError,
        match=r"is NaN or infinite at step \d+ .*--optim.learning-rate.* No checkpoint was written",
    ):
        train.run(config)
    train.make_program.cache_clear()


def test_leftovers_of_a_run_killed_at_its_start_do_not_block(
    finished: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config = dataclasses.replace(SMALL, out=tmp_path / "run", resume=True)
    config.out.mkdir()
    (config.out / "config.tmp").write_text("{")
    (config.out / ".probe").touch()
    assert train.run(config, lambda _: None)["params_sha256"] == finished[1]["params_sha256"]


@pytest.mark.parametrize("option", [["--seed", "5"], ["--method", "full"], ["--resume"]])
def test_compare_refuses_options_without_effect(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=rf"error: {option[0]} has no effect here .*--seeds"):
        compare.main([*options(dataclasses.replace(SMALL, out=tmp_path / "x")), *option])


@pytest.mark.parametrize(
    ("epochs", "changes", "expected"),
    [
        (10, {}, None),  # 10 passes
        (11, {}, 126),  # half of 253 steps, as the schedule rounds it
        (11, {"preset": "paper"}, None),
        (11, {"crest": CrestOptions(exclusion=ExclusionOptions(until=40))}, 40),
        (2, {"crest": CrestOptions(exclusion=ExclusionOptions(until=40))}, 40),
    ],
)
def test_exclusion_ends_at_the_first_drop_in_runs_of_many_passes(
    epochs: int, changes: dict[str, Any], expected: int | None
) -> None:
    config = dataclasses.replace(SMALL, epochs=epochs, budget=1.0, **changes)
    count = 1472  # 23 whole mini-batches
    assert config.exclusion(config.steps(count), count).until == expected
