"""The main job end to end: run folders, resuming, counters, presets, and its errors."""

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from small_run import ROOT, SMALL, STEPS, command, options

from crest_jax import ArraySource, Batch, CrestConfig
from crest_jax.report import read_lines
from experiments import compare, methods, nnx_example, program, train
from experiments.config import TextConfig, TrainConfig, UserError, as_options
from experiments.data import Dataset
from experiments.run_folder import read_network
from experiments.timing import PHASES, TRAINING, PhaseTimer


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
    assert sum(row["coresets"] for row in selections) == metrics["selected"]
    begun = [row for row in selections if row["reason"] in ("start", "error", "exhausted")]
    assert len(begun) == metrics["regions"] > 1
    assert begun[0]["step"] == round(0.2 * STEPS)
    assert [row["step"] for row in selections if row["reason"] == "random"] == [round(0.8 * STEPS)]


def test_a_finished_run_keeps_its_network(finished: tuple[TrainConfig, dict[str, Any]]) -> None:
    config, metrics = finished
    made = program.make_program(program.shared(config))
    state = made.init(jax.random.key(1))
    params, model_state = read_network(config.out, state.params, state.model_state)
    assert train.params_sha256(params) == metrics["params_sha256"]
    assert made.evaluate(params, model_state, made.held_out).accuracy == metrics["test_accuracy"]
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
    regions = metrics["regions"]
    checks = regions + sum(row["rho"] is not None for row in selections)
    assert metrics["forward"] == {
        "step": STEPS * 64,
        "selection": metrics["selected"] * 128,
        "curvature": regions * 2 * 64,
        "check": checks * 64,
        "evaluation": 4 * 355,
    }
    assert metrics["backward"] == {
        "step": STEPS * 64, "selection": 0, "curvature": regions * 2 * 64,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["crest", "random", "craig", "hardest", "unlearned"])
def test_a_run_cut_off_anywhere_resumes_bit_for_bit(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: dict[str, list[Any]] = {"whole": [], "cut": []}
    whole = dataclasses.replace(SMALL, method=method, out=tmp_path / "whole")
    cut = dataclasses.replace(whole, out=tmp_path / "cut")

    def spy(name: str, stop: int | None) -> None:
        program = train.make_program(train.shared(whole))

        def step(state: Any, batch: Batch) -> Any:
            batches[name].append((np.asarray(batch.rows), np.asarray(batch.weights)))
            if stop is not None and len(batches[name]) == stop:
                raise KeyboardInterrupt
            return program.train_step(state, batch)

        monkeypatch.setattr(train, "make_program", lambda _: program._replace(train_step=step))

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


def test_seed_and_method_change_the_parameters(
    finished: tuple[TrainConfig, dict[str, Any]], tmp_path: Path
) -> None:
    hashes = {finished[1]["params_sha256"]}
    for change in ({"seed": 1}, {"method": "stratified"}, {"method": "random"}):
        config = dataclasses.replace(SMALL, out=tmp_path / "".join(map(str, change.values())), **change)
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
        args=f"--methods random crest --rates crest 0.3 --learning-rate 0.2 --out {tmp_path}".split(),
    )
    rates = {options.method: options.learning_rate for options in compare.plan(config)}
    assert rates == {"random": 0.2, "crest": 0.3}
    for rates, said in (({"full": 0.1}, r"full 0\.1"), ({"random": math.inf}, "random inf")):
        with pytest.raises(UserError, match=rf"--rates has {said} but must name one of --methods"):
            compare.CompareConfig(methods=("random",), rates=rates)


def test_compare_writes_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(SMALL, out=tmp_path / "compared")
    compare.main([*options(config), "--seeds", "0", "1", "--full-seeds", "1"])
    text = (config.out / "summary.md").read_text()
    assert text.split("\n\n")[1] in capsys.readouterr().out
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
def test_first_command_of_the_readme_ends_in_time(tmp_path: Path) -> None:
    start = time.perf_counter()
    compare.main(["--out", str(tmp_path / "first")])
    assert time.perf_counter() - start < 360
    runs = {run["method"]: run for run in read_lines(tmp_path / "first" / "summary.jsonl")}
    assert runs["full"]["test_accuracy"] > 0.8
    assert all(run["test_accuracy"] > 0.5 for run in runs.values())
    assert runs["crest"]["training_seconds"] < runs["full"]["training_seconds"] / 2.5


def test_nnx_example_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert nnx_example.main(steps=60) > 0.7
    assert "regions" in capsys.readouterr().out


PRESETS = {
    "cifar10_resnet20": ((32, 32, 3), 10),
    "cifar100_resnet18": ((32, 32, 3), 100),
    "tinyimagenet_resnet50": ((64, 64, 3), 200),
}


def test_every_preset_is_dry_run() -> None:
    names = {path.stem for path in (ROOT / "experiments" / "configs").glob("[a-z]*.py")}
    assert names == set(PRESETS) | {"snli_roberta"}  # which test_language runs on SNLI's files
    snli = importlib.import_module("experiments.configs.snli_roberta").CONFIG
    assert (snli.dataset, snli.model, snli.budget) == ("snli", "roberta", 0.1)


SLOW_PRESETS = {"tinyimagenet_resnet50", "cifar100_resnet18"}  # a minute of compilation each


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_PRESETS else n for n in PRESETS]
)
def test_preset_takes_two_steps_on_stand_in_arrays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, classes = PRESETS[name]
    preset = importlib.import_module(f"experiments.configs.{name}").CONFIG
    assert (preset.epochs, preset.budget, preset.crest.batch_size) == (200, 0.1, 128)
    crest = preset.crest  # as its docstring says
    assert (preset.learning_rate, preset.warmup, preset.select_span) == (0.1, 0.1, (0.0, 1.0))
    assert (crest.tau, crest.exclude_below, crest.exclude_for, crest.exclude_keep) == (
        0.1,
        0.1,
        None,
        0,
    )
    assert (crest.coresets_per_interval, crest.interval_multiplier, crest.max_interval) == (1, 8, 16)
    assert crest.smoothing == "signed"
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, 16).astype(np.int32)
    channels = shape[-1]
    stand_in = Dataset(
        name=preset.dataset, train_inputs=inputs, train_labels=labels, test_inputs=inputs,
        test_labels=labels, validation_inputs=None, validation_labels=None, num_classes=classes,
        mean=(120.0,) * channels, std=(60.0,) * channels, augment=True,
        class_names=tuple(map(str, range(classes))),
    )  # fmt: skip
    monkeypatch.setattr(program, "load_data", lambda *_: stand_in)
    small = dataclasses.replace(preset.crest, batch_size=8, subset_size=16, probe_size=8)
    config = dataclasses.replace(
        preset, epochs=1, budget=1.0, evaluations=1, checkpoints=1, crest=small, out=tmp_path / "run"
    )
    metrics = train.run(config)
    train.make_program.cache_clear()
    assert metrics["steps"] == 2
    assert metrics["regions"] >= 1
    assert np.isfinite(metrics["test_loss"])


@pytest.mark.parametrize("span", [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.1), (float("nan"), 0.5)])
def test_a_span_that_does_not_rise_within_the_run_is_refused(span: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"--select-span is .* must be two rising shares"):
        dataclasses.replace(SMALL, select_span=span)


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
        (["--warmup", "0.6"], "--warmup is 0.6 but must lie in"),
        (["--dataset", "fashion_mnist", "--data-dir", "/nowhere"], "/nowhere"),
        (["--evaluate-on", "validation"], "has no validation rows"),
        (["--batch-size", "512", "--subset-size", "20000"], "--subset-size is 20000 but the data hold"),
        (["--tau", "-1"], "error: --tau is -1.0 but must lie in (0, 1e+06]; choose a value there."),
    ],
)
def test_bad_options_end_with_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = command("--out", str(out), *arguments)
    assert result.returncode != 0
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


NUMBERS = {  # option: what of these works, or is refused by another rule
    "width": (), "epochs": (), "budget": (), "learning-rate": (), "momentum": ("0",),
    "weight-decay": ("0",), "warmup": ("0",), "seed": ("0",), "evaluations": (), "checkpoints": (),
    "step-timeout": (), "devices": ("0",), "processes": (), "reselections": (), "pool-factor": (),
    "scoring-networks": (), "max-tokens": (), "dropout": ("0",), "batch-size": (), "subset-size": (),
    "scoring-chunk": (), "max-coresets": (), "coresets-per-interval": (), "interval-multiplier": (),
    "max-interval": (), "reference-step": ("0",), "tau": (), "probe-size": (),
    "curvature-coresets": (), "hutchinson-probes": (), "beta1": ("0",), "beta2": ("0",),
    "exclude-below": ("0",), "exclude-window": (), "exclude-for": (), "exclude-keep": ("0",),
    "exclude-until": (), "reuse": (), "select-from": ("0",), "select-until": (),
    "process": ("-1", "0"),  # refused where the processes begin
}  # fmt: skip


@pytest.mark.parametrize("option", NUMBERS)
def test_every_number_out_of_range_is_refused_by_its_option(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = 0
    for value in ("-1", "0", "nan", "inf"):
        if value in NUMBERS[option]:
            tyro.cli(TrainConfig, args=[f"--{option}", value])
            continue
        try:
            with pytest.raises(UserError, match=rf"^--{option} is \S+ but must .*; .*\.$") as found:
                tyro.cli(TrainConfig, args=[f"--{option}", value])
            assert len(str(found.value)) < 200
            refused += 1
        except SystemExit:  # no whole number
            assert option in capsys.readouterr().err
            assert value in ("nan", "inf")
    assert refused >= 2 - len(NUMBERS[option])


def test_no_number_is_forgotten() -> None:
    def numeric(kind: type) -> set[str]:
        hints = get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        number = (int, float, int | None, float | None)
        return {name.replace("_", "-") for name in fields if hints[name] in number}

    assert numeric(TrainConfig) | numeric(CrestConfig) | numeric(TextConfig) == set(NUMBERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nesterov", "--momentum", "0"], r"^--momentum is 0\.0 but must be above 0 with --nesterov"),
        (
            ["--method", "unlearned", "--exclude-below", "0"],
            "^--exclude-below is .* --method unlearned",
        ),
        (["--seed", "4294967296"], r"^--seed is 4294967296 but must lie in \[0, 4294967295\]"),
        (["--batch-size", "9", "--subset-size", "8"], "^--batch-size is 9 .*; raise --subset-size"),
        (["--curvature-of", "("], r"^--curvature-of is '\(' but must be a regular expression"),
    ],
)
def test_options_that_do_not_fit_each_other_are_named(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tyro.cli(TrainConfig, args=options)


def test_options_of_the_command_line_are_those_of_code() -> None:
    found = tyro.cli(TrainConfig, args=["--tau", "0.2", "--budget", "0.3"])
    assert found == TrainConfig(budget=0.3, crest=CrestConfig(tau=0.2))


def test_a_library_sentence_names_options_but_no_words() -> None:
    said = "tau is 2 but weighted losses need batch_size below 'subset_size' in /batch_size; lower tau."
    expected = "--tau is 2 but weighted losses need --batch-size below 'subset_size' in /batch_size; "
    assert as_options(said) == expected + "lower tau."


def test_a_diverged_run_names_the_step(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, method="random", learning_rate=1e30, out=tmp_path / "run")
    with pytest.raises(
        FloatingPointError,
        match=r"is NaN or infinite at step \d+ .*--learning-rate.* No checkpoint was written",
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
    ("epochs", "crest_options", "expected"),
    [
        (10, {}, None),  # 10 passes
        (11, {}, 126),  # half of 253 steps, as the schedule rounds it
        (11, {"exclude_keep": 0.0}, None),  # the paper's way
        (11, {"exclude_until": 40}, 40),
        (2, {"exclude_until": 40}, 40),
    ],
)
def test_exclusion_ends_at_the_first_drop_in_runs_of_many_passes(
    epochs: int, crest_options: dict[str, Any], expected: int | None
) -> None:
    crest = dataclasses.replace(SMALL.crest, **crest_options)
    config = dataclasses.replace(SMALL, epochs=epochs, budget=1.0, crest=crest)
    source = ArraySource(np.zeros((1472, 1)), np.arange(1472) % 2)  # 23 whole mini-batches
    assert methods.exclude_until(config, config.steps(1472), source) == expected
