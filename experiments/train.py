"""Train one network with one method and write a run folder.

    python -m experiments.train --method crest --out runs/crest

The folder gets ``config.json``, ``events.jsonl`` (one line per event of the selection and per
evaluation), ``checkpoints/`` and, at the end, ``metrics.json``. On the shipped data with the default
options (79 of 790 steps) CREST takes about a minute on two cores, half of it compilation, and reaches
about 71 %; full training reaches about 86 %.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from crest_jax import (
    ApplyFn,
    ArraySource,
    Batch,
    Evaluation,
    Selection,
    crest,
    cross_entropy,
    from_linen,
    make_evaluate,
    random_batches,
    stratified_batches,
    weighted_mean,
)
from crest_jax.report import append_line, record
from experiments import data, models, optim
from experiments.augment import pad_crop_flip
from experiments.checkpoints import Checkpoints
from experiments.config import TrainConfig, UserError
from experiments.run_folder import (
    commit,
    drop_events_after,
    finished_run,
    open_folder,
    write_json,
)
from experiments.timing import TRAINING, PhaseTimer


@contextlib.contextmanager
def one_sentence(interrupted: str) -> Iterator[None]:
    """End the program with one sentence, not a traceback, for what a user can cause or interrupt."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except (UserError, ValueError, FloatingPointError, OSError, data.DataError) as error:
        sys.exit(f"error: {error}")


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    params: Any
    model_state: Any
    opt_state: Any
    key: jax.Array  # of augmentation and dropout


class Program(NamedTuple):
    """The compiled parts of a run, which runs of other seeds share."""

    init: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]
    apply_fn: ApplyFn
    evaluate: Callable[..., Evaluation]
    train: ArraySource
    held_out: ArraySource
    steps: int
    full_steps: int
    selection: Selection
    timer: PhaseTimer
    batch_size: int


@functools.lru_cache(maxsize=2)
def load_data(name: str, data_dir: Path | None) -> data.Dataset:
    """Read a data set once per process."""
    return data.load(name, data_dir)


@functools.lru_cache(maxsize=2)
def load_sources(
    name: str, data_dir: Path | None, evaluate_on: str
) -> tuple[data.Dataset, ArraySource, ArraySource]:
    """Put train and held-out rows on the device once per process."""
    dataset = load_data(name, data_dir)
    held_out = (dataset.test_inputs, dataset.test_labels)
    if evaluate_on == "validation":
        if dataset.validation_inputs is None or dataset.validation_labels is None:
            raise UserError(
                f"--evaluate-on is validation but {dataset.name} has no validation rows; use test, or "
                "fashion_mnist_20k, which has some."
            )
        held_out = (dataset.validation_inputs, dataset.validation_labels)
    train = ArraySource(dataset.train_inputs, dataset.train_labels, dataset.num_classes)
    return dataset, train, ArraySource(*held_out, dataset.num_classes)


@functools.lru_cache(maxsize=8)
def make_program(config: TrainConfig) -> Program:
    """Build data, network, optimizer and compiled functions for all seeds of one configuration."""
    dataset, train, held_out = load_sources(config.dataset, config.data_dir, config.evaluate_on)
    steps = config.steps(len(train))
    shape = dataset.train_inputs.shape[1:]
    network = models.build(
        config.model,
        dataset.num_classes,
        width=config.width,
        input_shape=shape,
        mean=dataset.mean,
        std=dataset.std,
        **({"imagenet_stem": True} if config.imagenet_stem else {}),
    )
    apply_fn = from_linen(network)
    optimizer = optim.optimizer(
        config.optimizer,
        optim.schedule(config.schedule, config.learning_rate, steps, warmup_fraction=config.warmup),
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )

    def init(key: jax.Array) -> TrainState:
        init_key, state_key = jax.random.split(key)
        variables = network.init(
            init_key, jnp.zeros((1, *shape), dataset.train_inputs.dtype), train=False
        )
        params = variables.pop("params")
        return TrainState(params, dict(variables), optimizer.init(params), state_key)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        key, augment_key, dropout_key = jax.random.split(state.key, 3)
        inputs = batch.inputs
        if dataset.augment:
            inputs = pad_crop_flip(augment_key, inputs)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, model_state = apply_fn(
                params, state.model_state, inputs, train=True, rng=dropout_key
            )
            return weighted_mean(cross_entropy(logits, batch.labels), batch.weights), model_state

        (value, model_state), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, model_state, opt_state, key), value

    timer = PhaseTimer()
    return Program(
        init=jax.jit(init),
        train_step=jax.jit(train_step),
        apply_fn=apply_fn,
        evaluate=make_evaluate(apply_fn),
        train=train,
        held_out=held_out,
        steps=steps,
        full_steps=config.full_steps(len(train)),
        selection=_selection(config, apply_fn, train, steps, timer),
        timer=timer,
        batch_size=config.crest.batch_size,
    )


def _selection(
    config: TrainConfig, apply_fn: ApplyFn, train: ArraySource, steps: int, timer: PhaseTimer
) -> Selection:
    """Return the method's way of choosing mini-batches; CREST's phases go to ``timer``."""
    if config.method == "crest":
        settings = config.crest
        if settings.reference_step is None:
            settings = dataclasses.replace(settings, reference_step=round(config.warmup * steps))
        return crest(apply_fn, train, settings, phase=timer)
    batches = stratified_batches if config.method == "stratified" else random_batches
    return batches(train, config.crest.batch_size)


def shared(config: TrainConfig) -> TrainConfig:
    """Return the configuration without what runs of one program may differ in."""
    return dataclasses.replace(config, seed=0, out=Path(), resume=False, tensorboard=False)


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
    finished = finished_run(config)
    if finished is not None:
        say(f"{config.out} holds a finished run; nothing to do.")
        return finished
    program = make_program(shared(config))
    open_folder(config)
    timer = program.timer
    timer.restart({})
    init_key, selection_key = jax.random.split(jax.random.key(config.seed))
    state = timer("init", program.init, init_key)
    selected = timer("init", program.selection.init, selection_key, state.params, state.model_state)
    checkpoints = Checkpoints(config.out)
    progress = Progress()
    events = config.out / "events.jsonl"
    if config.resume:
        restored = checkpoints.restore((state, selected))
        if restored is None:
            say(f"{config.out} holds no checkpoint yet; starting afresh.")
        else:
            (state, selected), notes = restored
            progress = Progress(**notes)
            timer.restart(progress.seconds)
            say(f"resuming {config.out} at step {progress.step} of {program.steps}.")
    drop_events_after(events, progress.step)

    evaluation_steps = _spread(program.steps, config.evaluations)
    checkpoint_steps = _spread(program.steps, config.checkpoints)
    evaluated = progress.evaluated
    bar = tqdm(
        total=program.steps,
        initial=progress.step,
        desc=config.method,
        unit="step",
        mininterval=0.5 if sys.stderr.isatty() else 20.0,
    )
    board = _Board(config)
    accuracy, shown = math.nan, 0.0
    timer.start_clock()
    with bar, board:
        for step in range(progress.step, program.steps):
            selected, event = program.selection.refresh(selected, state.params, state.model_state)
            if event is not None:
                row = record(event, kind="selection")
                append_line(events, row)
                board.write(row)
            selected, batch = timer("step", program.selection.next_batch, selected)
            state, loss = timer("step", program.train_step, state, batch)
            done = step + 1
            if done in evaluation_steps | checkpoint_steps and not math.isfinite(float(loss)):
                raise FloatingPointError(
                    f"the training loss is {float(loss)} at step {done} but must be finite; lower "
                    "--learning-rate and start again in another --out."
                )
            if done in evaluation_steps:
                result = timer(
                    "evaluation", program.evaluate, state.params, state.model_state, program.held_out
                )
                evaluated += len(program.held_out)
                accuracy = result.accuracy
                row = record(result, kind="evaluation", step=done, train_loss=float(loss))
                row["seconds"] = timer.training
                append_line(events, row)
                board.write(row)
            if done in checkpoint_steps and done < program.steps:
                _save(checkpoints, done, (state, selected), timer, evaluated)
            if time.perf_counter() - shown > 0.5 or done == program.steps:
                bar.set_postfix_str(_postfix(float(loss), accuracy, selected, timer), refresh=False)
                shown = time.perf_counter()
            bar.update()
    metrics = _metrics(config, program, state, selected, result, evaluated)
    write_json(config.out / "metrics.json", metrics)
    checkpoints.close()
    return metrics


def _spread(steps: int, times: int) -> set[int]:
    """Return ``times`` evenly spaced steps in [1, steps], the last one included."""
    return {round(steps * (i + 1) / times) for i in range(times)} - {0}


def _save(checkpoints: Checkpoints, step: int, arrays: Any, timer: PhaseTimer, evaluated: int) -> None:
    notes = Progress(step, timer.totals(), evaluated)._asdict()
    timer("checkpoint", checkpoints.save, step, arrays, notes)


def _postfix(loss: float, accuracy: float, selected: Any, timer: PhaseTimer) -> str:
    parts = [f"loss {loss:.3f}", f"acc {100 * accuracy:.1f}%"]
    if hasattr(selected, "regions"):
        parts.append(f"regions {selected.regions} coresets {selected.selected} out {selected.excluded}")
    parts.extend(f"{n} {timer.seconds[n]:.0f}s" for n in TRAINING if timer.seconds[n] >= 0.5)
    return " ".join(parts)


class _Board:
    """TensorBoard scalars, where they are asked for."""

    def __init__(self, config: TrainConfig) -> None:
        self._writer = None
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(config.out / "tensorboard"))

    def __enter__(self) -> "_Board":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])


def params_sha256(params: Any) -> str:
    """Return a hash of all parameters, names and values, so that two runs can be compared exactly."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _metrics(
    config: TrainConfig,
    program: Program,
    state: TrainState,
    selected: Any,
    result: Evaluation,
    evaluated: int,
) -> dict[str, Any]:
    work = getattr(selected, "work", None)
    trained = program.steps * program.batch_size
    seconds = program.timer.totals()
    metrics = {
        f"{config.evaluate_on}_accuracy": result.accuracy,
        f"{config.evaluate_on}_loss": result.loss,
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
        "params_sha256": params_sha256(state.params),
        "seed": config.seed,
        "method": config.method,
        "commit": commit(),
        "versions": {"crest_jax": version("crest_jax"), "jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
    }
    if work is not None:
        for name in ("regions", "selected", "unused", "excluded"):
            metrics[name] = getattr(selected, name)
    return metrics


DEFAULT = TrainConfig()


def main(default: TrainConfig = DEFAULT) -> None:
    """Read the command line, train, and print where the results are."""
    with one_sentence("interrupted; --resume goes on from the last checkpoint."):
        config = tyro.cli(TrainConfig, default=default, description=__doc__)
        metrics = run(config)
    accuracy = metrics[f"{config.evaluate_on}_accuracy"]
    print(
        f"{config.method}: {100 * accuracy:.2f} % after {metrics['steps']} of "
        f"{metrics['full_steps']} steps in {metrics['training_seconds']:.1f} s (compilation "
        f"{metrics['seconds']['compile']:.1f} s apart); results in {config.out}"
    )


if __name__ == "__main__":
    main()
