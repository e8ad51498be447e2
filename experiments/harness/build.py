"""The compiled parts of a training run: data, network, optimizer, step and selection."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from crest_jax import ApplyFn, ArraySource, Batch, BatchSelector, cross_entropy, make_evaluate, place
from crest_jax.data.devices import in_all_processes, num_devices
from crest_jax.flax import from_linen, linen_features
from crest_jax.gradients import weighted_mean
from crest_jax.loop import Evaluate
from crest_jax.types import FeaturesFn
from experiments import data
from experiments.config import TEXT_DATASETS, Method, TrainConfig
from experiments.data.augment import pad_crop_flip
from experiments.harness import optim, selectors
from experiments.harness.cli import UserError
from experiments.harness.compile_cache import keep_compiled
from experiments.harness.distributed import make_mesh, own_share, share_out
from experiments.harness.inputs import Inputs, inputs_of, network_for
from experiments.harness.options import DataConfig, MachineConfig, OptimConfig
from experiments.harness.timing import PhaseTimer

if TYPE_CHECKING:
    from experiments.text.problem import TextProblem  # of the extra `text`

AnyDataset: TypeAlias = "data.Dataset | TextProblem"
SKIPPED_IN_A_ROW = 5  # steps with a NaN or infinite gradient, before skipping gives up


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    params: Any
    model_state: Any
    opt_state: Any
    key: jax.Array  # of augmentation and dropout


class StepMetrics(NamedTuple):
    """What a training step measured."""

    loss: jax.Array  # [], weighted mean over the mini-batch
    losses: jax.Array  # [m], in training mode, before the step
    bad: jax.Array  # [], bool: NaN or infinite, and not to be skipped


class Program(NamedTuple):
    """The compiled parts of a run, which runs of other seeds share."""

    init: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    gradient: Callable[[TrainState, Batch], Any]  # of a training step
    features_fn: FeaturesFn
    apply_fn: ApplyFn
    evaluate: Evaluate
    train: ArraySource
    held_out: ArraySource
    steps: int
    full_steps: int
    selection: BatchSelector
    timer: PhaseTimer
    batch_size: int
    class_names: tuple[str, ...]
    inputs: Inputs | None  # None: texts


def load_data(name: str, options: DataConfig) -> data.Dataset:
    """Read a set of images or a table once per process."""
    if name in TEXT_DATASETS:
        raise UserError(
            f"--dataset is {name} but must be one of images or a table here; choose such a one."
        )
    return _load(name, options.dir, options.own() if name in data.OWN_DATASETS else None)


_load = functools.lru_cache(maxsize=2)(data.load)


def load_sources(config: TrainConfig) -> tuple[AnyDataset, ArraySource, ArraySource]:
    """Put train and held-out rows on the device once per process."""
    if config.dataset in TEXT_DATASETS:
        return _text_sources(
            TrainConfig(
                dataset=config.dataset,
                model=config.model,
                data=config.data,
                machine=config.machine,
                text=config.text,
            )
        )
    return _array_sources(config.dataset, config.data, config.machine.devices, config.machine.shard)


@functools.lru_cache(maxsize=2)
def _text_sources(config: TrainConfig) -> "tuple[TextProblem, ArraySource, ArraySource]":
    from experiments.text import problem as language  # of the extra `text`

    problem = in_all_processes(lambda: language.load_problem(config, tqdm.write), "data")
    return problem, *language.sources(
        problem, config.data.evaluate_on, make_mesh(config.machine.devices)
    )


@functools.lru_cache(maxsize=2)
def _array_sources(
    name: str, options: DataConfig, devices: int, shard: bool | None
) -> tuple[data.Dataset, ArraySource, ArraySource]:
    dataset = in_all_processes(lambda: load_data(name, options), "data")
    held_out = (dataset.test_inputs, dataset.test_labels)
    if options.evaluate_on == "validation":
        if dataset.validation_inputs is None or dataset.validation_labels is None:
            raise UserError(
                f"--data.evaluate-on is validation but {dataset.name} has no validation rows; use "
                "test, or "
                "fashion_mnist_20k, which has some."
            )
        held_out = (dataset.validation_inputs, dataset.validation_labels)
    mesh = make_mesh(devices)
    inputs = dataset.train_inputs
    shard = share_out(dataset.name, inputs, mesh, shard)
    inputs = own_share(inputs) if shard else inputs
    train = ArraySource(inputs, dataset.train_labels, mesh=mesh, shard=shard)
    return dataset, train, ArraySource(*held_out, mesh=mesh)


class Training(NamedTuple):
    """A network with its optimizer, for one number of steps."""

    network: Any
    apply_fn: ApplyFn
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
    gradient: Callable[[TrainState, Batch], Any]  # of a training step


class Network(NamedTuple):
    """A network with what makes its parameters."""

    module: Any
    init: Callable[[jax.Array], dict[str, Any]]  # key -> variables


def _array_network(config: TrainConfig, inputs: Inputs) -> Network:
    module = network_for(config, inputs)
    example = jnp.zeros((1, *inputs.shape), inputs.dtype)
    return Network(module, jax.jit(lambda key: module.init(key, example, train=False)))


def _text_network(config: TrainConfig, problem: "TextProblem") -> Network:
    from experiments.text import problem as language

    module = language.build(config, problem.encoder, problem.num_classes)
    example = jnp.zeros((1, 8, 2), jnp.int32)
    fresh = jax.jit(lambda key: module.init(key, example, train=False)["params"])
    filled = language.pretrained(module, problem, fresh)
    return Network(module, lambda key: {"params": filled(key)})


def _optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    schedule = optim.schedule(
        config.schedule, config.learning_rate, steps, warmup_fraction=config.warmup
    )
    return optim.optimizer(
        config.name,
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def make_training(config: TrainConfig, dataset: AnyDataset, steps: int) -> Training:
    """Build the network and its compiled training step, the schedule compressed to ``steps``."""
    if config.machine.compilation_cache:
        keep_compiled()
    if isinstance(dataset, data.Dataset):
        inputs = inputs_of(dataset, config.data)
        network, variables_of = _array_network(config, inputs)
        augment = dataset.augment if config.data.augment is None else config.data.augment
    else:
        network, variables_of = _text_network(config, dataset)
        augment = False
    apply_fn = from_linen(network)
    skipping = config.run.nonfinite == "skip"
    optimizer = _optimizer(config.optim, steps)
    if skipping:
        optimizer = optax.apply_if_finite(optimizer, SKIPPED_IN_A_ROW)

    def init(key: jax.Array) -> TrainState:
        init_key, state_key = jax.random.split(key)
        variables = dict(variables_of(init_key))
        params = variables.pop("params")
        return TrainState(params, variables, optimizer.init(params), state_key)

    takes_weights = "weights" in inspect.signature(type(network).__call__).parameters

    def norm_weights(batch: Batch) -> dict[str, jax.Array]:
        return {"weights": batch.weights} if takes_weights else {}

    def measured(state: TrainState, batch: Batch) -> Any:
        _, augment_key, dropout_key = jax.random.split(state.key, 3)
        inputs = batch.inputs
        if augment:
            inputs = pad_crop_flip(augment_key, inputs)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, model_state = apply_fn(
                params, state.model_state, inputs, train=True, rng=dropout_key, **norm_weights(batch)
            )
            losses = cross_entropy(logits, batch.labels)
            return weighted_mean(losses, batch.weights), (model_state, losses)

        return jax.value_and_grad(loss, has_aux=True)(state.params)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        (value, (model_state, losses)), gradient = measured(state, batch)
        key = jax.random.split(state.key, 3)[0]
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        bad = ~(jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates)))
        if skipping:
            bad = opt_state.notfinite_count > SKIPPED_IN_A_ROW
            model_state = jax.tree.map(
                lambda new, old: jnp.where(opt_state.last_finite, new, old),
                model_state,
                state.model_state,
            )
        return TrainState(params, model_state, opt_state, key), StepMetrics(value, losses, bad)

    step = jax.jit(train_step)
    return Training(network, apply_fn, init, step, lambda state, batch: measured(state, batch)[1])


@functools.lru_cache(maxsize=32)
def make_program(config: TrainConfig) -> Program:
    """Build data, network, optimizer and compiled functions for all seeds of one configuration."""
    dataset, train, held_out = load_sources(config)
    steps, full_steps = config.steps(len(train)), config.full_steps(len(train))
    scheduled = full_steps if config.method == "full_cut_off" else steps
    network, apply_fn, init, train_step, gradient = make_training(config, dataset, scheduled)
    timer = PhaseTimer()
    features_fn = linen_features(network, method="features")
    chunk = 100 if config.dataset in TEXT_DATASETS else 500
    chunk = -(-chunk // num_devices(train.mesh)) * num_devices(train.mesh)
    return Program(
        init=lambda key: place(init(key), train.mesh),
        train_step=train_step,
        gradient=gradient,
        features_fn=features_fn,
        apply_fn=apply_fn,
        evaluate=make_evaluate(apply_fn, chunk_size=chunk),
        train=train,
        held_out=held_out,
        steps=steps,
        full_steps=full_steps,
        selection=selectors.make_selection(
            config, apply_fn, features_fn, train, steps, timer, functools.partial(train_network, config)
        ),
        timer=timer,
        batch_size=config.batch_size,
        class_names=dataset.class_names,
        inputs=inputs_of(dataset, config.data) if isinstance(dataset, data.Dataset) else None,
    )


def shared(config: TrainConfig) -> TrainConfig:
    """Return the configuration without what runs of one program may differ in."""
    own = config.machine
    machine = MachineConfig(
        devices=own.devices, shard=own.shard, compilation_cache=own.compilation_cache
    )
    return dataclasses.replace(config, seed=0, out=Path(), resume=False, machine=machine)


def train_network(
    config: TrainConfig,
    method: Method,
    key: jax.Array,
    on_batch: Callable[[TrainState, Batch], None] | None = None,
) -> TrainState:
    """Train another network of the same kind from new parameters, for methods that need one to score.

    Args:
      config: the run that needs it.
      method: "random" trains for the budget, "full" for all steps.
      key: of its parameters and mini-batches.
      on_batch: called before each step with the state and the batch.
    """
    program = make_program(shared(dataclasses.replace(config, method=method)))
    init_key, selection_key = jax.random.split(key)
    state = program.init(init_key)
    selected = program.selection.init(selection_key, state.params, state.model_state)
    for _ in range(program.steps):
        selected, batch = program.selection.next_batch(selected)
        if on_batch is not None:
            on_batch(state, batch)
        state, _ = program.train_step(state, batch)
    return state
