"""Train a small network by CREST on so many devices and processes, and write all that it chose.

Started by test_devices.py, and by hand; two processes are started like this:

    P="python tests/several_devices.py --devices 4 --processes 2 --address localhost:9911"
    $P --process 0 --out two.npz & $P --process 1 --out -
"""

import argparse
import logging
import tempfile
from pathlib import Path

import jax
import numpy as np

STEPS, COUNT, CLASSES, FEATURES = 50, 402, 3, 8
SELECTIONS = {  # rows, width, picks, options
    "plain": (702, 5, 60, {}),
    "few": (10, 3, 10, {}),
    "ties": (240, 2, 30, {}),
    "classes": (600, 6, 50, {"metric": "cosine"}),
    "without": (600, 6, 50, {"metric": "sqeuclidean", "quotas": [30, 0, 15, 5]}),
    "exponential": (500, 4, 40, {"metric": "exponential", "proposals": 3}),
}


def pool(name):
    """Return points and the options of a selection of ``SELECTIONS``."""
    count, width, size, options = SELECTIONS[name]
    rng = np.random.default_rng(1)
    if name == "ties":  # every point four times, on a grid
        points = np.repeat(rng.integers(0, 4, (count // 4, width)), 4, axis=0).astype(np.float32)
    else:
        points = rng.normal(size=(count, width)).astype(np.float32)
    labels = None
    if name in ("classes", "without"):
        labels = rng.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])
    return points, size, labels, options


def select(name):
    """Choose a coreset of a pool that is spread over all devices."""
    from crest_jax import select_coreset_sharded

    points, size, labels, options = pool(name)
    share = len(points) // jax.process_count()
    own = points[share * jax.process_index() :][:share]
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    found = select_coreset_sharded(own, size, mesh=mesh, labels=labels, **options)
    return {name: np.asarray(values) for name, values in found._asdict().items() if values is not None}


STREAM = {"size": 24, "part": 150, "num_classes": 3}
STREAM_SPLIT = 500  # rows of process 0


def stream():
    """Return the rows that two processes choose from, and their labels."""
    rng = np.random.default_rng(2)
    labels = rng.choice(3, 900, p=[0.5, 0.3, 0.2])
    return (3 * labels[:, None] + rng.normal(size=(900, 4))).astype(np.float32), labels


def choose_from_streams():
    """Choose from streams of which each process reads its own, unequal, share."""
    from crest_jax import select_coreset_stream
    from crest_jax.data.devices import gather

    points, labels = stream()
    share = slice(0, STREAM_SPLIT) if jax.process_index() == 0 else slice(STREAM_SPLIT, None)
    points, labels = points[share], labels[share]
    found = {}

    def keep(name, coreset):
        for field, values in coreset._asdict().items():
            if values is None:  # streams do not say who stands for whom
                continue
            found[f"{name}_{field}"] = np.stack(gather(np.asarray(values)[None]))[:, 0]

    keep("array", select_coreset_stream(points, labels=labels, across_processes=True, **STREAM))
    pairs = ((points[i : i + 90], labels[i : i + 90]) for i in range(0, len(points), 90))
    keep("pairs", select_coreset_stream(pairs, across_processes=True, **STREAM))
    # Each process has classes of its own, so what is class 0 here is none there.
    own = np.repeat([3, 7] if jax.process_index() == 0 else [5, 9], 60)
    rows = np.float32(np.random.default_rng(3 + jax.process_index()).normal(size=(120, 4)))
    rows *= 1 + 50 * jax.process_index()
    keep("apart", select_coreset_stream(rows, 8, labels=own, part=120, across_processes=True))
    size, part = STREAM["size"], STREAM["part"]
    for name, own in (
        ("nan", np.where(jax.process_index() == 1, np.nan, points)),
        ("width", points[:, : 4 - jax.process_index()]),
        ("empty", points[: len(points) * (1 - jax.process_index())]),
    ):
        try:
            select_coreset_stream(own, size, part=part, across_processes=True)
            said = "nothing"
        except ValueError as error:
            said = str(error)
        said = gather(np.frombuffer(said.encode(), np.uint8))
        found[f"error_{name}"] = np.array([bytes(text).decode() for text in said])
    return found


def build(mesh, kind, folder):
    """Return the source: "whole" or "shard" on the devices, or "host", a file read as needed."""
    from crest_jax import ArraySource, HostSource

    rng = np.random.default_rng(0)
    labels = rng.choice(CLASSES, COUNT, p=[0.5, 0.3, 0.2])
    centres = 2 * rng.normal(size=(CLASSES, FEATURES))
    inputs = centres[labels] + rng.normal(size=(COUNT, FEATURES))
    inputs = inputs.astype(np.float64 if jax.config.jax_enable_x64 else np.float32)
    if kind == "host":
        path = folder / f"inputs{jax.process_index()}.npy"
        np.save(path, inputs)
        return HostSource(np.load(path, mmap_mode="r"), labels, mesh=mesh)
    if kind == "shard":
        share = COUNT // jax.process_count()
        start = share * jax.process_index()
        return ArraySource(inputs[start : start + share], labels, mesh=mesh, shard=True)
    return ArraySource(inputs, labels, mesh=mesh)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--address")
    parser.add_argument("--x64", action="store_true")
    parser.add_argument("--source", choices=["whole", "shard", "host"], default="whole")
    parser.add_argument("--no-mesh", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="coresets drawn just before their steps")
    parser.add_argument("--scan", type=int, default=1, help="most steps in one program")
    parser.add_argument("--select", choices=[*SELECTIONS], help="choose a coreset instead of training")
    parser.add_argument("--stream", action="store_true", help="choose from streams of two processes")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_enable_x64", options.x64)
    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.address, options.processes, options.process)
    with tempfile.TemporaryDirectory() as folder:
        if options.stream:
            found = choose_from_streams()
        else:
            found = select(options.select) if options.select else train(options, Path(folder))
    if options.process == 0:
        np.savez(options.out, **found)


def train(options, folder):
    """Train and return what was chosen, with the compilations after the first region."""
    import jax.numpy as jnp
    import optax
    from helpers import init_mlp, mlp_features
    from small_settings import fresh_settings, settings

    from crest_jax import crest, cross_entropy, place
    from crest_jax.gradients import weighted_mean
    from crest_jax.loop import several_steps

    mesh = None if options.no_mesh else jax.make_mesh((jax.device_count(),), ("data",))
    source = build(mesh, options.source, folder)
    dtype = jnp.float64 if options.x64 else jnp.float32

    scored = set()  # rows that a device passes through the model at once, beside the training steps

    def apply_fn(params, model_state, inputs, *, train, rng):
        if not train:
            scored.add(inputs.shape[0])
        return mlp_features(params, model_state, inputs)[1], model_state

    tx = optax.sgd(0.3, momentum=0.9)

    @jax.jit
    def step(state, batch):
        params, opt_state = state

        def loss(params):
            logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return weighted_mean(losses, batch.weights), losses

        (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses

    config = settings(
        batch_size=16, subset_size=40, probe_size=32, max_coresets=6, interval_multiplier=5.0,
        max_interval=6, tau=0.02, select_until=40,
        exclusion={"threshold": 0.3, "window": 10, "cooldown": 2},
    )  # fmt: skip
    if options.fresh:
        config = fresh_settings(
            batch_size=16, subset_size=40, select_until=40, exclusion=config.exclusion
        )
    selection = crest(apply_fn, source, config)
    params = place(jax.tree.map(lambda x: x.astype(dtype), init_mlp(0, FEATURES, 12, CLASSES)), mesh)
    state = params, place(tx.init(params), mesh)
    selected = selection.init(jax.random.key(1), params, {})
    compiled = Compilations()
    rows, weights, losses_seen, events, late = [], [], [], [], []

    def noting(state, batch):
        state, losses = step(state, batch)
        return state, (losses, batch.indices, batch.weights)

    given = {"view": lambda state: (state[0], {}), "losses": lambda noted: noted[0]}
    number = 0
    while number < STEPS:
        before = compiled.count
        k = 1
        if options.scan == 1:
            selected, event = selection.refresh(selected, state[0], {})
            selected, batch = selection.next_batch(selected)
            state, losses = step(state, batch)
            selected, own = selection.observe(selected, batch, losses), (batch.indices, batch.weights)
        else:
            selected, event = selection.traced.refresh(selected, state[0], {})
            k = min(selection.traced.quiet(selected), STEPS - number, options.scan)
            selected, state, (_, *own) = several_steps(selection, noting, selected, state, k, **given)
        rows.append(np.asarray(own[0]).reshape(k, -1))
        weights.append(np.asarray(own[1]).reshape(k, -1))
        if event is not None:
            events.append([number, event.num_regions, event.coresets, event.excluded])
            losses_seen.append([event.loss or 0.0, event.rho or 0.0])
        late.append(compiled.count - before)
        number += k
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state[0])])
    return {
        "rows": np.concatenate(rows), "weights": np.concatenate(weights), "events": np.array(events),
        "losses": np.array(losses_seen), "params": flat, "late": np.array(late),
        "devices": len(source.take(own[0].reshape(-1)[:16]).inputs.sharding.device_set),
        "scored": np.array(sorted(scored)),
    }  # fmt: skip


class Compilations(logging.Handler):
    """Counts the programs that are compiled."""

    def __init__(self):
        super().__init__()
        self.count = 0
        jax.config.update("jax_log_compiles", True)
        logging.getLogger("jax").propagate = False
        logging.getLogger("jax").handlers = [self]

    def emit(self, record):
        self.count += record.getMessage().startswith("Compiling")


if __name__ == "__main__":
    main()
