"""Runs that are stopped, killed, damaged or starved end as if nothing had been, or with a sentence."""

import dataclasses
import errno
import fcntl
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from small_run import ROOT, SMALL, command, damage, options
from small_settings import settings

from crest_jax import ArraySource, Batch, crest
from experiments import train
from experiments.config import TrainConfig
from experiments.harness import checkpoints, run_folder
from experiments.harness.cli import UserError
from experiments.harness.interrupts import Stopped, listening, remembering
from experiments.harness.options import NetworkConfig
from experiments.harness.run_folder import Lock, finished_run, held_file, held_folder, open_folder
from experiments.harness.steps import take_steps

SKIPPING = dataclasses.replace(SMALL.run, nonfinite="skip")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("runs") / "whole")
    return train.run(config)["params_sha256"]


def stopped_at(config, step, monkeypatch, stop=KeyboardInterrupt):
    """Run until the training step ``step``, which raises."""
    seen = 0

    def steps(*given):
        nonlocal seen
        seen += 1
        if seen == step:
            raise stop
        return take_steps(*given)

    monkeypatch.setattr(train, "take_steps", steps)
    with pytest.raises(stop):
        train.run(config)
    monkeypatch.undo()


def sha256_of(config):
    return json.loads((config.out / "metrics.json").read_text())["params_sha256"]


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, monkeypatch, undisturbed, how):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    stopped_at(config, 60, monkeypatch)  # after the checkpoints of steps 17, 34 and 52
    damage(config.out / "checkpoints" / "52", how)
    said = []
    metrics = train.run(dataclasses.replace(config, resume=True), said.append)
    assert "the checkpoint of step 52 is damaged" in said[0]
    assert said[1] == f"resuming {config.out} at step 34 of 69."
    assert metrics["params_sha256"] == undisturbed
    assert (config.out / checkpoints.DAMAGED / "52").is_dir(), "what the user had is kept"


def test_values_that_changed_are_found_even_where_the_files_can_be_read(tmp_path):
    there = checkpoints.Checkpoints(tmp_path, print)
    with there:
        there.save(1, {"x": jnp.arange(4.0), "n": 3}, {"step": 1})
    notes = next((tmp_path / "checkpoints" / "1").rglob("notes/metadata"))
    values = json.loads(notes.read_text())
    values["sha256"] = values["sha256"][::-1]
    notes.write_text(json.dumps(values))
    again = checkpoints.Checkpoints(tmp_path, print)
    with pytest.raises(UserError, match="not those that were saved"):
        again.restore({"x": jnp.zeros(4), "n": 0})


@pytest.mark.slow
@pytest.mark.parametrize("saver", ["orbax", "flax"])
def test_the_selections_state_is_saved_in_the_ways_that_the_readme_names(tmp_path, saver):
    rng = np.random.default_rng(0)
    source = ArraySource(np.float32(rng.normal(size=(96, 4))), np.arange(96) % 3)
    params = jnp.zeros((4, 3))
    selection = crest(
        lambda params, state, inputs, *, train, rng: (inputs @ params, state),
        source,
        settings(batch_size=12, subset_size=24, probe_size=24),
    )
    state, like = (selection.init(jax.random.key(seed), params, {}) for seed in (0, 1))
    state, _ = selection.refresh(state, params, {})
    state, _ = selection.next_batch(state)

    def is_key(leaf):
        return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    def plain(tree):
        return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)

    if saver == "orbax":
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            found = checkpointer.restore(tmp_path / "state", like)
    else:
        with pytest.raises(TypeError, match="key_data"):
            serialization.to_bytes(state)
        found = serialization.from_bytes(plain(like), serialization.to_bytes(plain(state)))
        found = jax.tree.map(
            lambda old, new: jax.random.wrap_key_data(new) if is_key(old) else new, like, found
        )
    for _ in range(12):  # through the end of the region
        states = [selection.refresh(one, params, {})[0] for one in (state, found)]
        (state, batch), (found, other) = (selection.next_batch(one) for one in states)
        np.testing.assert_array_equal(batch.indices, other.indices)
        np.testing.assert_array_equal(batch.weights, other.weights)
    assert type(found.step) is int


@pytest.mark.slow
def test_all_checkpoints_damaged_is_one_sentence_and_nothing_is_lost(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    stopped_at(config, 40, monkeypatch)
    for step in ("17", "34"):
        damage(config.out / "checkpoints" / step, "cut")
    before = sorted(path for path in config.out.rglob("*"))
    result = command(*options(config), "--resume")
    assert result.returncode != 0
    assert "no checkpoint in" in result.stderr
    assert "step 34" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert before == sorted(path for path in config.out.rglob("*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_from_it(
    tmp_path, monkeypatch, undisturbed, number
):
    config = dataclasses.replace(
        SMALL, out=tmp_path / "run", run=dataclasses.replace(SMALL.run, checkpoints=1)
    )
    seen = 0

    def steps(*given):
        nonlocal seen
        seen += 1
        if seen == 29:
            os.kill(os.getpid(), number)
        return take_steps(*given)

    monkeypatch.setattr(train, "take_steps", steps)
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name} after step 29"):
        train.run(config)
    monkeypatch.undo()
    said = []
    metrics = train.run(dataclasses.replace(config, resume=True), said.append)
    assert said == [f"resuming {config.out} at step 29 of 69."]
    assert metrics["params_sha256"] == undisturbed


def started(config):
    """The training script in a process of its own, what it says in a pipe."""
    # A shell lets what it runs in the background ignore Ctrl-C.
    script = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += "runpy.run_module('experiments.train', run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", script, *options(config)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_the_script_says_what_stopped_it(tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", epochs=4000)
    process = started(config)
    wait_for(config.out / "events.jsonl", process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in said
    assert "--resume goes on" in said
    assert "Traceback" not in said


def test_a_second_signal_ends_the_run_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with listening() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.number == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_at(config, monkeypatch, where):
    """Run the script until Ctrl-C comes at some place, and return what it says."""
    program = train.make_program(train.shared(config))

    def ctrl_c(*_):
        raise KeyboardInterrupt

    if where == "loading":
        monkeypatch.setattr(train, "make_program", ctrl_c)
    elif where == "compiling":
        monkeypatch.setattr(train, "make_program", lambda _: program._replace(init=ctrl_c))
    elif where == "writing":
        monkeypatch.setattr(train, "write_network", ctrl_c)
    elif where == "finished":
        run = train.run
        monkeypatch.setattr(train, "run", lambda config: ctrl_c(run(config)))
    else:
        numbers = iter(range(1, where + 1))

        def steps(*given):
            return take_steps(*given) if next(numbers) < where else ctrl_c()

        monkeypatch.setattr(train, "take_steps", steps)
    monkeypatch.setattr("sys.argv", ["train", *options(config)])
    with pytest.raises(SystemExit) as found:
        train.main()
    monkeypatch.undo()
    return found.value.code


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("loading", "nothing was written, so start again."),
        ("compiling", "no checkpoint is written yet, so --resume starts afresh."),
        (5, "no checkpoint is written yet, so --resume starts afresh."),
        (40, "--resume goes on from the checkpoint of step 34."),
        ("writing", "--resume goes on from the checkpoint of step 52."),
        ("finished", "but the run had finished, and {out} holds its results."),
    ],
)
def test_an_interrupt_promises_what_is_there(tmp_path, monkeypatch, undisturbed, where, said):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    found = interrupted_at(config, monkeypatch, where)
    assert found == f"interrupted; {said.format(out=config.out)}"
    if where == "loading":
        assert not config.out.exists()
        return
    told = []
    metrics = train.run(dataclasses.replace(config, resume=True), told.append)
    assert metrics["params_sha256"] == undisturbed
    step = re.search(r"of step \d+", said)
    what = "starting afresh" if "afresh" in said else f"at {step[0][3:]}" if step else "finished"
    assert what in told[0]


@pytest.fixture
def ctrl_c():
    """Ctrl-C as Python begins with it: a shell lets what it runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_python_loses_is_remembered(ctrl_c):
    class Swallows:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with remembering():
        one = Swallows()
        del one
        with listening() as asked:
            assert asked.number == signal.SIGINT
    with listening() as asked:
        assert asked.number is None


def test_ctrl_c_while_the_script_begins_promises_what_is_there(tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    process = started(config)
    wait_for(config.out / "config.json", process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    there = checkpoints.newest_checkpoint(config.out)
    if there is None:
        assert "interrupted; no checkpoint is written yet, so --resume starts afresh." in said
    else:
        assert f"--resume goes on from the checkpoint of step {there}." in said
    assert "Traceback" not in said


def test_two_runs_that_found_the_same_empty_folder_do_not_mix(tmp_path):
    first, second = (dataclasses.replace(SMALL, out=tmp_path / "run", seed=seed) for seed in (0, 1))
    assert finished_run(first) is finished_run(second) is None
    in_use = pytest.raises(UserError, match="is in use by another run but only one may write")
    with open_folder(first), in_use:
        open_folder(second)
    with pytest.raises(UserError, match="already holds a run"):
        open_folder(second)
    with pytest.raises(UserError, match=r"seed = 1 but the run in .* has 0"):
        open_folder(dataclasses.replace(second, resume=True))
    assert [path.name for path in first.out.iterdir()] == ["config.json"]
    (first.out / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="was finished by another run just now"):
        open_folder(dataclasses.replace(first, resume=True))


def no_locks(file, how):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("links", [True, False])
def test_without_file_locks_one_of_two_runs_goes_on_all_the_same(tmp_path, monkeypatch, links):
    def no_link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    first, second = (dataclasses.replace(SMALL, out=tmp_path / "run", seed=seed) for seed in (0, 1))
    exists = run_folder.Path.exists
    said = []
    with open_folder(first, said.append):
        assert "cannot be locked" in said[0]
        monkeypatch.setattr(
            run_folder.Path, "exists", lambda path: path.name != "config.json" and exists(path)
        )
        monkeypatch.setattr(run_folder, "new_folder", lambda _: None)  # it was empty a moment ago
        with pytest.raises(UserError, match="was taken by another run just now"):
            open_folder(second, said.append)
        monkeypatch.undo()
    assert json.loads((first.out / "config.json").read_text())["seed"] == 0
    assert [path.name for path in first.out.iterdir()] == ["config.json"]


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = (
        "from experiments.harness.run_folder import held_folder\nfrom pathlib import Path\nimport sys, "
        "time\n"
        "with held_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use by another run"), held_folder(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / run_folder.LOCK).exists()
    config = dataclasses.replace(SMALL, out=tmp_path)
    with open_folder(config):  # nor does what it left count as a file of somebody's
        pass
    assert not (tmp_path / run_folder.LOCK).exists()


def test_a_lock_that_its_holder_takes_away_meanwhile_is_not_mistaken_for_ones_own(
    tmp_path, monkeypatch
):
    flock, first = fcntl.flock, Lock(tmp_path / "lock", "it")

    def late(file, how):
        if first._file is not None:
            first.__exit__()  # between opening and locking
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(tmp_path / "lock", "it"):
        monkeypatch.undo()
        with pytest.raises(UserError, match="it is in use"):
            Lock(tmp_path / "lock", "it")


@pytest.mark.slow
def test_two_that_resume_one_folder_do_not_mix(tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", epochs=4000)
    process = started(config)
    wait_for(config.out / "events.jsonl", process)
    second = command(*options(config), "--resume")
    assert second.returncode != 0
    assert "is in use by another run but only one may write there at a time" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with open_folder(dataclasses.replace(config, resume=True)):
        pass


@pytest.mark.slow
def test_two_runs_started_at_once_give_one_whole_run(tmp_path):
    configs = [dataclasses.replace(SMALL, out=tmp_path / "run", seed=seed) for seed in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.train", *options(config), "--seed", str(config.seed)],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for config in configs
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1], said
    refused = said[codes.index(1)]
    assert "in use by another run" in refused or "already holds a run" in refused
    assert len(refused.splitlines()) == 1
    seeds = {
        json.loads((tmp_path / "run" / f"{name}.json").read_text())["seed"]
        for name in ("config", "metrics")
    }
    assert seeds == {codes.index(0)}


@pytest.mark.parametrize(
    "script",
    [
        "compare", "studies.regions", "studies.settings_map", "studies.pilot_check", "benchmarks.costs",
        "benchmarks.curvature", "benchmarks.scaling", "benchmarks.large", "studies.gradient_quality",
        "studies.equivalent",
    ],
)  # fmt: skip
def test_every_script_refuses_a_folder_that_another_one_writes(tmp_path, monkeypatch, script):
    module = importlib.import_module(f"experiments.{script}")
    monkeypatch.setattr("sys.argv", [script, "--out", str(tmp_path)])
    if script in ("studies.pilot_check", "studies.settings_map"):
        monkeypatch.setattr("sys.argv", [script, "--out", str(tmp_path), "--runs", str(tmp_path)])
        monkeypatch.setattr(module, "read_settings", lambda _: {})
    with held_folder(tmp_path):
        with pytest.raises(SystemExit, match=r"is in use by another run but only one may write"):
            module.main()
        assert [path.name for path in tmp_path.iterdir()] == [run_folder.LOCK]


@pytest.mark.parametrize(
    ("script", "name"),
    [("pilot", "a.json"), ("studies.difficulty", "a.npz"), ("report", "a.html")],
)
def test_every_script_refuses_a_file_that_another_one_writes(tmp_path, monkeypatch, script, name):
    module = importlib.import_module(f"experiments.{script}")
    out = tmp_path / name
    runs = ["--runs", str(tmp_path)] if script == "report" else []
    monkeypatch.setattr("sys.argv", [script, "--out", str(out), *runs])
    with held_file(out):
        with pytest.raises(SystemExit, match=rf"{name} is in use by another run but only one may"):
            module.main()
        with held_file(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []


def wait_for(path, process):
    deadline = time.monotonic() + 240
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    assert path.exists()


def spoilt(config, steps, monkeypatch):
    """Make the training steps of these numbers see a NaN loss."""

    def spoiling(selection, counted, *given):
        def step(trained, batch):
            bad = jnp.any(trained.step + 1 == jnp.array(sorted(steps)))
            weights = batch.weights * jnp.where(bad, jnp.nan, 1.0)
            return counted(trained, batch._replace(weights=weights))

        return take_steps(selection, spoilt_step.setdefault(counted, step), *given)

    spoilt_step = {}
    monkeypatch.setattr(train, "take_steps", spoiling)


def test_a_loss_that_is_not_a_number_is_named_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    spoilt(config, {61}, monkeypatch)
    with pytest.raises(
        FloatingPointError,
        match=r"at step 61 \(noticed in region \d+\) .*last good checkpoint is of step 52",
    ):
        train.run(config)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["17", "34", "52"]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("stop", "at step 37"), ("skip", "in a row, up to step 42")])
def test_what_a_check_notices_is_named_by_the_step_that_did_it(tmp_path, monkeypatch, how, said):
    own = dataclasses.replace(SMALL.run, nonfinite=how)
    config = dataclasses.replace(SMALL, out=tmp_path / "run", run=own)
    spoilt(config, {37} if how == "stop" else range(37, 43), monkeypatch)  # while coresets are selected
    with pytest.raises(FloatingPointError, match=rf"{said} .*last good checkpoint is of step 34"):
        train.run(config)


@pytest.mark.slow
def test_no_checkpoint_is_written_between_bad_steps(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", run=SKIPPING)
    spoilt(config, {16, 17}, monkeypatch)
    train.run(config)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["34", "52"]


@pytest.mark.slow
def test_bad_steps_are_left_out_and_counted_where_that_is_asked_for(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", run=SKIPPING)
    spoilt(config, {5, 30, 31, 60}, monkeypatch)
    metrics = train.run(config)
    assert metrics["skipped"] == 4
    assert metrics["test_accuracy"] > 0.6
    rows = [json.loads(line) for line in (config.out / "events.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if row["kind"] == "evaluation"] == [1, 3, 3, 4]


def test_skipping_gives_up_after_five_bad_steps_in_a_row(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", run=SKIPPING)
    spoilt(config, range(56, 62), monkeypatch)
    with pytest.raises(
        FloatingPointError, match=r"for 6 steps in a row, up to step 61 .*is of step 52"
    ):
        train.run(config)


@pytest.mark.slow
def test_a_skipped_step_changes_neither_parameters_nor_batch_statistics():
    config = TrainConfig(
        dataset="digits", model="resnet8", epochs=1, batch_size=8, network=NetworkConfig(width=4),
        run=SKIPPING,
    )  # fmt: skip
    program = train.make_program(train.shared(config))
    state = program.init(jax.random.key(0))
    rows = jnp.arange(8)
    batch = Batch(*program.train.take(rows), jnp.full(8, jnp.nan), rows)
    after, measured = program.train_step(state, batch)
    assert not measured.bad
    for name in ("params", "model_state"):
        before, now = jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(after, name))
        assert before
        assert all((old == new).all() for old, new in zip(before, now, strict=True))


def test_a_run_that_no_longer_moves_ends_with_a_sentence():
    code = "from experiments.harness.interrupts import Watchdog\nimport time\n"
    code += "with Watchdog(0.5): time.sleep(60)"
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "no step was finished for" in result.stderr
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_run_that_moves_is_left_alone():
    code = (
        "from experiments.harness.interrupts import Watchdog\nimport time\nwith Watchdog(3) as "
        "watchdog:\n"
        "    for _ in range(8):\n        time.sleep(0.5)\n        watchdog.alive()\n"
        "time.sleep(4)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, undisturbed):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        SMALL, out=tmp_path / "run", run=dataclasses.replace(SMALL.run, checkpoints=23)
    )
    start = time.monotonic()
    assert command(*options(dataclasses.replace(config, out=tmp_path / "timed"))).returncode == 0
    whole = time.monotonic() - start
    kills = finished = 0
    while kills < 20:
        more = ["--resume"] if config.out.exists() else []
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.train", *options(config), *more], cwd=ROOT,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            said = process.communicate(timeout=whole * rng.uniform(0.2, 1.0))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, said
        assert sha256_of(config) == undisturbed
        finished += 1
        shutil.rmtree(config.out)
    result = command(*options(config), *(["--resume"] if config.out.exists() else []))
    assert result.returncode == 0, result.stderr
    assert sha256_of(config) == undisturbed
    print(f"{kills} kills, {finished + 1} runs finished, all with the same parameters")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_and_read_only_disks_are_one_sentence_and_nothing_is_lost(tmp_path, undisturbed):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        config = dataclasses.replace(SMALL, out=small / "run")
        result = command(*options(config))
        assert result.returncode != 0
        assert "cannot be written" in result.stderr
        assert "Traceback" not in result.stderr
        assert "ERROR" not in result.stderr
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        result = command(*options(config), "--resume")
        assert result.returncode == 0, result.stderr
        assert sha256_of(config) == undisturbed
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        result = command(*options(dataclasses.replace(config, out=small / "other")))
        assert result.returncode != 0
        assert "cannot be written (Read-only file system)" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    finally:
        subprocess.run(["umount", str(small)], check=True)
