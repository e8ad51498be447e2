"""Train one network with one method and write a run folder.

    python -m experiments.train --method crest --out runs/crest
    python -m experiments.train --setting cifar10_resnet20 --out runs/cifar10

``--setting`` begins with the options of one of ``experiments.presets``.

The folder gets ``config.json``, ``events.jsonl`` (one line per event of the selection and per
evaluation), ``checkpoints/`` and, at the end, ``metrics.json``, ``picks.npz`` (how often each example
was trained on in each twentieth of the run) and ``network.msgpack``, the trained network. On the
shipped data with the default options (79 of 790 steps) CREST takes about a minute on two cores, half of
it compilation, and reaches about 70 %; full training reaches about 86 %.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from crest_jax import place
from crest_jax.data.chunks import chunk_length
from crest_jax.data.devices import copied, in_all_processes
from crest_jax.loop import most_steps
from experiments.config import TrainConfig
from experiments.harness.build import SKIPPED_IN_A_ROW, Program, TrainState, make_program, shared
from experiments.harness.checkpoints import Checkpoints, newest_checkpoint, sha256
from experiments.harness.cli import UserError, named_setting, one_sentence, parse
from experiments.harness.distributed import TIMEOUT, leads, partners, start, wait_for_all
from experiments.harness.interrupts import Stopped, Watchdog, asked_by_any, listening
from experiments.harness.records import append_line, record
from experiments.harness.run_folder import (
    COMMIT,
    drop_events_after,
    finished_run,
    open_folder,
    write_json,
    write_network,
)
from experiments.harness.steps import NONE_BAD, SEGMENTS, Counted, Trained, between, take_steps
from experiments.harness.timing import TRAINING, PhaseTimer
from experiments.presets import SETTINGS


def what_is_left(config: TrainConfig | None) -> str:
    """Say that the run was interrupted, and what it can go on from.

    Args:
      config: its options; None before they were read.
    """
    if config is None or not (config.out / "config.json").is_file():
        return "interrupted; nothing was written, so start again."
    if (config.out / "metrics.json").is_file():
        return f"interrupted; but the run had finished, and {config.out} holds its results."
    step = newest_checkpoint(config.out)
    if step is None:
        return "interrupted; no checkpoint is written yet, so --resume starts afresh."
    return f"interrupted; --resume goes on from the checkpoint of step {step}."


def doubtful(state: TrainState) -> bool:
    """Return whether steps are being skipped: the parameters may be such that none works again."""
    skipping = isinstance(state.opt_state, optax.ApplyIfFiniteState)
    return skipping and int(state.opt_state.notfinite_count) > 0


def skipped_steps(state: TrainState) -> dict[str, int]:
    """Return how many steps were left out, where bad ones are."""
    if not isinstance(state.opt_state, optax.ApplyIfFiniteState):
        return {}
    return {"skipped": int(state.opt_state.total_notfinite)}


def _stop_if(bad: int, selected: Any, checkpoints: Checkpoints, config: TrainConfig) -> None:
    """End the run when a step's loss was NaN or infinite and not skipped."""
    if bad == NONE_BAD:
        return
    skipping = config.run.nonfinite == "skip"
    what = f"for {SKIPPED_IN_A_ROW + 1} steps in a row, up to" if skipping else "at"
    remedy = "lower --optim.learning-rate" + ("" if skipping else " or pass --run.nonfinite skip")
    region = f" (noticed in region {selected.num_regions})" if hasattr(selected, "num_regions") else ""
    raise FloatingPointError(
        f"the training loss or its gradient is NaN or infinite {what} step {bad}{region} but must be "
        f"finite; {remedy} and start again in another --out. {_last_good(checkpoints)}"
    )


def _last_good(checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    good = checkpoints.newest
    return (
        "No checkpoint was written before."
        if good is None
        else f"The last good checkpoint is of step {good}."
    )


class Progress(NamedTuple):
    """What a run has done so far, beside its states; the checkpoint's notes."""

    step: int = 0
    seconds: dict[str, float] = {}  # noqa: RUF012, never changed in place
    evaluated: int = 0  # rows passed forward by evaluations


def run(config: TrainConfig, say: Callable[[str], None] = tqdm.write) -> dict[str, Any]:
    """Run or resume one training run and return its metrics.

    Raises:
      UserError: for options, data or folders that cannot work, in one sentence.
    """
    say = say if leads() else _silent
    unused = config.unused_by([config.method])
    if unused is not None:
        raise UserError(unused)
    finished = finished_run(config)
    if finished is not None:
        say(f"{config.out} holds a finished run; nothing to do.")
        return finished
    program = make_program(shared(config))
    wait_for_all("every process has looked into the run folder")
    lock = in_all_processes(
        lambda: open_folder(config, say, program.inputs) if leads() else None, "run folder"
    )
    with lock or contextlib.nullcontext(), Checkpoints(config.out, say) as checkpoints:
        return _run(config, program, checkpoints, say)


def _silent(text: str) -> None:
    del text


class Held(NamedTuple):
    """The states of a run, which a checkpoint holds."""

    network: TrainState
    selected: Any
    picks: jax.Array  # [SEGMENTS, n], how often each example was trained on


def _begin(
    config: TrainConfig, program: Program, checkpoints: Checkpoints, say: Callable[[str], None]
) -> tuple[Held, Progress]:
    """Return the states of the newest checkpoint, or those before the first step."""
    timer = program.timer
    timer.restart({})
    init_key, selection_key = jax.random.split(jax.random.key(config.seed))
    state = timer("init", program.init, init_key)
    selected = timer("init", program.selection.init, selection_key, state.params, state.model_state)
    picks = jnp.zeros((SEGMENTS, len(program.train)), jnp.int32)
    held, progress = Held(state, selected, place(picks, program.train.mesh)), Progress()
    if config.resume:
        restored = checkpoints.restore(tuple(held))
        if restored is None:
            say(f"{config.out} holds no checkpoint yet; starting afresh.")
        else:
            held, progress = Held(*restored[0]), Progress(**restored[1])
            timer.restart(progress.seconds)
            say(f"resuming {config.out} at step {progress.step} of {program.steps}.")
    if leads():
        drop_events_after(config.out / "events.jsonl", progress.step)
    return held, progress


def _bar(config: TrainConfig, steps: int, done: int) -> tqdm:
    return tqdm(
        total=steps,
        initial=done,
        desc=config.method,
        unit="step",
        mininterval=0.5 if sys.stderr.isatty() else 20.0,
        **({} if leads() else {"disable": True}),
    )


def _waits_for(bar: tqdm, what: str) -> None:
    """Say at once what takes so long, to whoever looks on."""
    bar.set_postfix_str(what, refresh=sys.stderr.isatty())


class _Course(NamedTuple):
    """Where chunks of steps end: before an evaluation or a checkpoint, and after so many steps."""

    borders: tuple[int, ...]
    most: int

    def chunk(self, program: Program, selected: Any, step: int) -> int:
        """Return how many steps to take in one program."""
        if self.most == 1:
            return 1
        border = next(border for border in self.borders if border > step)
        return chunk_length(min(between(program.selection)[1](selected), border - step, self.most))


def _selected(
    program: Program, trained: Trained, selected: Any, config: TrainConfig, checkpoints: Checkpoints
) -> Any:
    """Let the selection look at the network; return its state and note what it did."""
    state = trained.network
    try:
        selected, event = between(program.selection)[0](selected, state.params, state.model_state)
    except FloatingPointError as error:
        _stop_if(int(trained.bad), selected, checkpoints, config)  # a step was bad before
        raise FloatingPointError(f"{error} {_last_good(checkpoints)}") from error
    if event is not None:
        _note(config, record(event, kind="selection"))
    return selected


def _note(config: TrainConfig, row: dict[str, Any]) -> None:
    if leads():
        append_line(config.out / "events.jsonl", row)


def _evaluated(
    config: TrainConfig, program: Program, state: TrainState, step: int, loss: jax.Array
) -> dict[str, float]:
    """Evaluate the network and note the result."""
    given = state.params, state.model_state, program.held_out
    result = program.timer("evaluation", program.evaluate, *given)
    row = record(result, kind="evaluation", step=step, train_loss=float(loss))
    _note(config, row | {"seconds": program.timer.training, **skipped_steps(state)})
    return result


def _held(trained: Trained, selected: Any) -> Held:
    network, picks = copied((trained.network, trained.picks))  # later steps give theirs away
    return Held(network, selected, picks)


def _run(
    config: TrainConfig, program: Program, checkpoints: Checkpoints, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train from the newest checkpoint, or from the beginning, and write the results."""
    timer, (held, progress) = program.timer, _begin(config, program, checkpoints, say)
    evaluations = _spread(program.steps, config.run.evaluations)
    saves = _spread(program.steps, config.run.checkpoints)
    evaluated, accuracy, shown = progress.evaluated, math.nan, 0.0
    bad = place(jnp.full((), NONE_BAD), program.train.mesh)
    network, picks = copied((held.network, held.picks))  # each program takes over their memory
    done = place(jnp.asarray(progress.step, jnp.int32), program.train.mesh)
    trained, selected = Trained(network, picks, bad, done), held.selected
    counted = Counted(program.train_step, program.steps)
    most = most_steps(config.machine.scan or "auto", program.train_step, held.network)
    course = _Course(tuple(sorted(evaluations | saves)), most)
    patience = config.machine.step_timeout or (TIMEOUT if jax.process_count() > 1 else None)
    step, quiet_until = progress.step, progress.step
    del held
    timer.start_clock()
    bar = _bar(config, program.steps, progress.step)
    with bar, listening() as asked, Watchdog(patience) as watchdog:
        _waits_for(bar, "compiling")
        while step < program.steps:
            due = step >= quiet_until
            if due:  # else nothing is waited for
                timer("step", jax.block_until_ready, trained)
            selected = _selected(program, trained, selected, config, checkpoints)
            if due:
                quiet_until = step + between(program.selection)[1](selected)
            number = course.chunk(program, selected, step)
            given = program.selection, counted, selected, trained, number
            selected, trained, loss = timer.ahead("step", take_steps, *given)
            step += number
            if step in evaluations | saves:
                timer("step", jax.block_until_ready, trained)
                _stop_if(int(trained.bad), selected, checkpoints, config)
            if step in evaluations:
                _waits_for(bar, "evaluating")
                result = _evaluated(config, program, trained.network, step, loss)
                evaluated, accuracy = evaluated + len(program.held_out), result["accuracy"]
            if step in saves and step < program.steps and not doubtful(trained.network):
                _save(checkpoints, step, _held(trained, selected), timer, evaluated)
            if time.perf_counter() - shown > 0.5 or step == program.steps:
                told = _postfix(timer("step", float, loss), accuracy, selected, timer)
                bar.set_postfix_str(told, refresh=False)
                shown = time.perf_counter()
            bar.update(number)
            watchdog.alive()
            if step < program.steps and asked_by_any(asked, step):
                _stop_if(int(trained.bad), selected, checkpoints, config)
                if checkpoints.newest != step:
                    _save(checkpoints, step, _held(trained, selected), timer, evaluated)
                checkpoints.wait()
                raise Stopped(asked.number or signal.SIGTERM, step)
        checkpoints.wait()
    metrics = _metrics(config, program, trained.network, selected, result, evaluated)
    if leads():
        np.savez_compressed(config.out / "picks.npz", counts=np.asarray(trained.picks))
        write_network(config.out, trained.network.params, trained.network.model_state)
        write_json(config.out / "metrics.json", metrics)
    return metrics


def _spread(steps: int, times: int) -> set[int]:
    """Return ``times`` evenly spaced steps in [1, steps], the last one included."""
    return {round(steps * (i + 1) / times) for i in range(times)} - {0}


def _save(checkpoints: Checkpoints, step: int, held: Held, timer: PhaseTimer, evaluated: int) -> None:
    notes = Progress(step, timer.totals(), evaluated)._asdict()
    timer("checkpoint", checkpoints.save, step, tuple(held), notes)


def _postfix(loss: float, accuracy: float, selected: Any, timer: PhaseTimer) -> str:
    parts = [f"loss {loss:.3f}"]
    if math.isfinite(accuracy):  # evaluated already
        parts.append(f"accuracy {100 * accuracy:.1f} %")
    if hasattr(selected, "num_regions"):
        parts.append(f"coresets {selected.num_selected} excluded {selected.excluded}")
    parts.extend(f"{n} {timer.seconds[n]:.0f}s" for n in TRAINING if timer.seconds[n] >= 0.5)
    return " ".join(parts)


def _metrics(
    config: TrainConfig,
    program: Program,
    state: TrainState,
    selected: Any,
    result: dict[str, float],
    evaluated: int,
) -> dict[str, Any]:
    work = getattr(selected, "work", None)
    trained = program.steps * program.batch_size
    seconds = program.timer.totals()
    metrics = {
        f"{config.data.evaluate_on}_accuracy": result["accuracy"],
        f"{config.data.evaluate_on}_loss": result["loss"],
        "class_names": list(program.class_names),
        "steps": program.steps,
        "full_steps": program.full_steps,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "training_seconds": round(program.timer.training, 4),
        "forward": {
            "step": trained,
            "selection": work.selection_forward if work else 0,
            "curvature": work.curvature_forward if work else 0,
            "check": work.check_forward if work else 0,
            "evaluation": evaluated,
        },
        "backward": {
            "step": trained,
            "selection": work.selection_backward if work else 0,
            "curvature": work.curvature_backward if work else 0,
        },
        **skipped_steps(state),
        "params_sha256": sha256(state.params),
        "seed": config.seed,
        "method": config.method,
        "commit": COMMIT,
        "versions": {"crest_jax": version("crest_jax"), "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }
    if config.method == "crest":
        own = config.crest_config(program.steps, len(program.train))
        metrics["settings"] = dataclasses.asdict(own)
    if work is not None:
        names = ("num_regions", "num_selected", "num_unused", "excluded")
        metrics |= {name: getattr(selected, name) for name in names if hasattr(selected, name)}
    return metrics


def main() -> None:
    """Read the command line, train, and print where the results are."""
    config: TrainConfig | None = None
    with one_sentence(lambda: what_is_left(config)):
        setting, args = named_setting(None, SETTINGS)
        default = TrainConfig() if setting is None else setting.run
        config = parse(TrainConfig, default=default, description=__doc__, argv=args)
        start(config)
        with partners():
            metrics = run(config)
    if not leads():
        return
    accuracy = metrics[f"{config.data.evaluate_on}_accuracy"]
    print(
        f"{config.method}: {100 * accuracy:.2f} % after {metrics['steps']} of "
        f"{metrics['full_steps']} steps in {metrics['training_seconds']:.1f} s (compilation "
        f"{metrics['seconds']['compile']:.1f} s apart); results in {config.out}"
    )


if __name__ == "__main__":
    main()
