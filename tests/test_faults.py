"""Runs that are stopped, killed, damaged or starved end as if nothing had been, or with a sentence."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import ROOT, SMALL, command, damage, options

from crest_jax import Batch, CrestConfig
from experiments import checkpoints, train
from experiments.config import TrainConfig, UserError
from experiments.faults import Stopped, listening


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    config = dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("runs") / "whole")
    return train.run(config)["params_sha256"]


def stopped_at(config, step, monkeypatch, stop=KeyboardInterrupt):
    """Run until the training step ``step``, which raises."""
    program = train.make_program(train.shared(config))
    seen = 0

    def train_step(state, batch):
        nonlocal seen
        seen += 1
        if seen == step:
            raise stop
        return program.train_step(state, batch)

    monkeypatch.setattr(train, "make_program", lambda _: program._replace(train_step=train_step))
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
    config = dataclasses.replace(SMALL, out=tmp_path / "run", checkpoints=1)
    program = train.make_program(train.shared(config))
    seen = 0

    def train_step(state, batch):
        nonlocal seen
        seen += 1
        if seen == 29:
            os.kill(os.getpid(), number)
        return program.train_step(state, batch)

    monkeypatch.setattr(train, "make_program", lambda _: program._replace(train_step=train_step))
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name} after step 29"):
        train.run(config)
    monkeypatch.undo()
    said = []
    metrics = train.run(dataclasses.replace(config, resume=True), said.append)
    assert said == [f"resuming {config.out} at step 29 of 69."]
    assert metrics["params_sha256"] == undisturbed


def test_the_script_says_what_stopped_it(tmp_path):
    config = dataclasses.replace(SMALL, out=tmp_path / "run", epochs=4000)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *options(config)], cwd=ROOT,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
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


def wait_for(path, process):
    deadline = time.monotonic() + 240
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    assert path.exists()


def spoilt(config, steps, monkeypatch):
    """Make the training steps of these numbers see a NaN loss."""
    program = train.make_program(train.shared(config))
    seen = 0

    def train_step(state, batch):
        nonlocal seen
        seen += 1
        weights = batch.weights * (jnp.nan if seen in steps else 1.0)
        return program.train_step(state, batch._replace(weights=weights))

    monkeypatch.setattr(train, "make_program", lambda _: program._replace(train_step=train_step))


def test_a_loss_that_is_not_a_number_is_named_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, out=tmp_path / "run")
    spoilt(config, {61}, monkeypatch)
    with pytest.raises(
        FloatingPointError,
        match=r"at step 61 \(noticed in region \d+\) .*last good checkpoint is of step 52",
    ):
        train.run(config)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["17", "34", "52"]


@pytest.mark.parametrize(("how", "said"), [("stop", "at step 37"), ("skip", "in a row, up to step 42")])
def test_what_a_check_notices_is_named_by_the_step_that_did_it(tmp_path, monkeypatch, how, said):
    crest = dataclasses.replace(SMALL.crest, nonfinite=how)
    config = dataclasses.replace(SMALL, out=tmp_path / "run", crest=crest)
    spoilt(config, {37} if how == "stop" else range(37, 43), monkeypatch)  # while coresets are selected
    with pytest.raises(FloatingPointError, match=rf"{said} .*last good checkpoint is of step 34"):
        train.run(config)


def test_no_checkpoint_is_written_between_bad_steps(tmp_path, monkeypatch):
    crest = dataclasses.replace(SMALL.crest, nonfinite="skip")
    config = dataclasses.replace(SMALL, out=tmp_path / "run", crest=crest)
    spoilt(config, {16, 17}, monkeypatch)
    train.run(config)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == ["34", "52"]


def test_bad_steps_are_left_out_and_counted_where_that_is_asked_for(tmp_path, monkeypatch):
    crest = dataclasses.replace(SMALL.crest, nonfinite="skip")
    config = dataclasses.replace(SMALL, out=tmp_path / "run", crest=crest)
    spoilt(config, {5, 30, 31, 60}, monkeypatch)
    metrics = train.run(config)
    assert metrics["skipped"] == 4
    assert metrics["test_accuracy"] > 0.6
    rows = [json.loads(line) for line in (config.out / "events.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows if row["kind"] == "evaluation"] == [1, 3, 3, 4]


def test_skipping_gives_up_after_five_bad_steps_in_a_row(tmp_path, monkeypatch):
    crest = dataclasses.replace(SMALL.crest, nonfinite="skip")
    config = dataclasses.replace(SMALL, out=tmp_path / "run", crest=crest)
    spoilt(config, range(56, 62), monkeypatch)
    with pytest.raises(
        FloatingPointError, match=r"for 6 steps in a row, up to step 61 .*is of step 52"
    ):
        train.run(config)


def test_a_skipped_step_changes_neither_parameters_nor_batch_statistics():
    crest = CrestConfig(batch_size=8, subset_size=16, probe_size=16, nonfinite="skip")
    config = TrainConfig(dataset="digits", model="resnet8", width=4, epochs=1, crest=crest)
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
    code = "from experiments.faults import Watchdog\nimport time\nwith Watchdog(0.5): time.sleep(60)"
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "no step was finished for" in result.stderr
    assert time.monotonic() - start < 30


def test_a_run_that_moves_is_left_alone():
    code = (
        "from experiments.faults import Watchdog\nimport time\nwith Watchdog(3) as watchdog:\n"
        "    for _ in range(8):\n        time.sleep(0.5)\n        watchdog.alive()\n"
        "time.sleep(4)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, undisturbed):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(SMALL, out=tmp_path / "run", checkpoints=23)
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
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this machine does not let a file system be mounted")
    try:
        config = dataclasses.replace(SMALL, out=small / "run")
        result = command(*options(config))
        assert result.returncode != 0
        assert "cannot be written" in result.stderr or "No space left" in result.stderr
        assert "Traceback" not in result.stderr
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
