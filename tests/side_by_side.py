"""Compare two commits on one machine: parameters that small runs end with, and what selections choose.

    python tests/side_by_side.py BASE HEAD

Each commit is checked out into a folder of its own and runs its own copy of this file, so that names
may change from one to the other. Printed are the hashes that differ; exit status 1 if any does.
Processors differ in the last bits, so no hash is kept. ``--hashes FILE`` runs this tree alone.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def digest(tree):
    """Hash the values of all arrays of a tree."""
    import jax
    import numpy as np

    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def runs(folder):
    """Name and options of the small trainings, by the training script."""
    import numpy as np

    from experiments.config import TrainConfig
    from experiments.harness.options import (
        BaselineConfig,
        CrestOptions,
        ExclusionOptions,
        MachineConfig,
        NetworkConfig,
        OptimConfig,
        RunConfig,
        TextConfig,
    )  # fmt: skip

    exclusion = ExclusionOptions(window=8, threshold=0.3)
    crest = CrestOptions(probe_size=64, exclusion=exclusion, select_span=(0.2, 0.8))
    throughout = CrestOptions(probe_size=64, exclude=False, select_span=(0.0, 1.0))
    small = TrainConfig(
        dataset="digits", model="mlp", epochs=4, budget=0.5, batch_size=64, crest=crest,
        network=NetworkConfig(width=16), baselines=BaselineConfig(reselections=3),
        run=RunConfig(evaluations=1, checkpoints=1),
    )  # fmt: skip
    words = np.array(["dull", "fine", "film", "plot", "slow", "warm", "wit", "bold", "flat"])
    rng = np.random.default_rng(0)
    lines = ["text,label"]
    for label in rng.integers(0, 2, 160):
        lines.append(f"{' '.join(rng.choice(words[label::2], 5))},{'good' if label else 'bad'}")
    texts = folder / "texts.csv"
    texts.write_text("\n".join(lines) + "\n")
    encoder = folder / "encoder"
    shutil.copytree(ROOT / "tests" / "assets" / "tiny_bert", encoder)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (encoder / "vocab.txt").write_text("\n".join(tokens) + "\n")

    def a(**changed):
        return dataclasses.replace(small.for_method("crest"), **changed)

    yield "crest throughout", a(crest=throughout)
    yield "crest in a span with exclusion", a()
    yield "last layer", a(crest=dataclasses.replace(crest, embedding="last_layer"))
    yield "sketch", a(crest=dataclasses.replace(crest, embedding="sketch", smoothing="paper"))
    yield (
        "residual network",
        a(
            model="resnet8", network=NetworkConfig(width=4), epochs=2,
            crest=dataclasses.replace(crest, select_span=(0.0, 1.0)),
        ),
    )  # fmt: skip
    yield "two devices", a(machine=MachineConfig(devices=2))
    yield "sharded data", a(machine=MachineConfig(devices=2, shard=True))
    for method in (
        "random", "stratified", "dynamic_pruning", "dynamic_pruning_random", "fixed", "craig",
        "gradmatch", "gradmatch_batch", "glister", "el2n", "top_loss",
    ):  # fmt: skip
        yield method, small.for_method(method)
    yield (
        "text",
        TrainConfig(
            dataset="texts", model="bert", epochs=4, budget=1.0, batch_size=16,
            optim=OptimConfig(name="adamw", learning_rate=1e-3, schedule="linear"),
            crest=CrestOptions(
                probe_size=32, curvature_of="classifier|layer_1", select_span=(0.2, 0.8),
                exclusion=ExclusionOptions(window=4),
            ),
            run=RunConfig(evaluations=1, checkpoints=1),
            text=TextConfig(checkpoint=encoder, max_tokens=16, train_file=texts),
        ),
    )  # fmt: skip


def loops():
    """Name and end of trainings with other models, by the library's own loop."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from crest_jax import ArraySource, CrestConfig, ExclusionConfig, crest, cross_entropy, fit
    from crest_jax.baselines import dynamic_pruning
    from crest_jax.flax import from_nnx

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    points = (rng.normal(size=(300, 6)) + 1.5 * labels[:, None]).astype(np.float32)
    source = ArraySource(points, labels)
    config = dataclasses.replace(
        CrestConfig.recommended(steps=60, batch_size=16), probe_size=32, select_from=None,
        select_until=None, reference_step=None, exclusion=ExclusionConfig.recommended(window=10),
    )  # fmt: skip

    pruning = ExclusionConfig(threshold=0.3, window=5, cooldown=2, keep_fraction=0.25)

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(6, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.tanh(self.norm(self.hidden(x))))

    network = Network(nnx.Rngs(0))
    apply_fn = from_nnx(network)
    params, model_state = apply_fn.view(network)

    @jax.jit
    def step(state, batch):
        def loss(params):
            logits, after = apply_fn(params, state[1], batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return jnp.sum(losses * batch.weights) / jnp.sum(batch.weights), (after, losses)

        (_, (after, losses)), slope = jax.value_and_grad(loss, has_aux=True)(state[0])
        return (jax.tree.map(lambda p, g: p - 0.1 * g, state[0], slope), after), losses

    def trained(selection):
        state, key = (params, model_state), jax.random.key(1)
        return fit(
            selection, step, state, key=key, steps=60, view=lambda s: s, losses=lambda losses: losses
        )

    yield "nnx crest", trained(crest(apply_fn, source, config))
    yield (
        "nnx few picks",
        trained(crest(apply_fn, source, dataclasses.replace(config, batch_size=2, subset_size=8))),
    )
    yield "nnx pruned", trained(dynamic_pruning(source, 16, pruning))


def selections():
    """Name and choice of selection problems."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from crest_jax import Factored, select_coreset, select_coreset_sharded, select_coreset_stream

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1_500, 8)).astype(np.float32)
    y = rng.choice(5, 1_500, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    large = rng.normal(size=(12_000, 4)).astype(np.float32)
    gram = np.exp(-np.linalg.norm(x[:300, None] - x[None, :300], axis=-1)).astype(np.float32)
    gram = (gram + gram.T) / 2
    pair = Factored(x[:, :3], x[:, 3:])
    key = jax.random.key(3)
    yield "dense", select_coreset(x[:400], 40, method="dense")
    yield "lazy", select_coreset(x, 60, method="lazy")
    yield "lazy, large", select_coreset(large, 80, method="lazy")
    yield "stochastic", select_coreset(x, 60, method="stochastic", key=key)
    yield "partitioned", select_coreset(large, 50, method="partitioned", key=key)
    for metric in ("sqeuclidean", "cosine", "exponential"):
        yield metric, select_coreset(x, 50, metric=metric, method="lazy")
        yield f"{metric}, dense", select_coreset(x[:300], 30, metric=metric, method="dense")
    yield "precomputed", select_coreset(gram, 25, metric="precomputed")
    yield "classes", select_coreset(x, 60, labels=y)
    yield "classes, lazy", select_coreset(x, 60, labels=y, method="lazy")
    yield "equal quotas", select_coreset(x, 60, labels=y, quotas="equal")
    yield "given quotas", select_coreset(x, 30, labels=y, quotas=[10, 0, 10, 5, 5])
    yield "one to two picks", select_coreset(x, 7, labels=y)
    yield "few picks", select_coreset(x, 3, labels=y)
    yield "batched", select_coreset(x.reshape(5, 300, 8), 20)
    yield "batched, classes", select_coreset(x.reshape(5, 300, 8), 20, labels=y.reshape(5, 300))
    yield "factored", select_coreset(pair, 50, labels=y)
    yield "far from the origin", select_coreset(x.astype(np.float64) + 1e6, 30)
    yield (
        "traced",
        jax.jit(lambda a, b: select_coreset(a, 20, labels=b, num_classes=5))(x[:300], y[:300]),
    )
    yield "traced, vmap", jax.vmap(lambda a: select_coreset(a, 20))(jnp.asarray(x.reshape(5, 300, 8)))
    yield "stream", select_coreset_stream(large, 40, part=3_000, key=key)
    yield "stream of pieces", select_coreset_stream(iter(np.split(large, 6)), 40, part=3_000, key=key)
    mesh = jax.make_mesh((2,), ("data",))
    yield "sharded", select_coreset_sharded(x, 40, mesh=mesh, labels=y)


def hashes():
    """All hashes of this tree, by name."""
    from experiments.train import run

    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, (title, config) in enumerate(runs(folder)):
            options = dataclasses.replace(config, out=folder / str(place))
            found[f"run: {title}"] = run(options, say=lambda text: None)["params_sha256"][:16]
            print(title, file=sys.stderr)
    for title, tree in loops():
        found[f"loop: {title}"] = digest(tree)
    for title, coreset in selections():
        parts = {"picks": coreset.indices, "weights": coreset.weights, "gains": coreset.gains}
        found |= {f"selection: {title}: {part}": digest(value) for part, value in parts.items()}
    return found


def of_commit(commit, folder):
    """The hashes of a commit, by its own copy of this file."""
    tree, out = Path(folder) / "tree", Path(folder) / "hashes.json"
    subprocess.run(["git", "worktree", "add", "--detach", "-q", tree, commit], cwd=ROOT, check=True)
    try:
        command = [sys.executable, "-W", "ignore", "tests/side_by_side.py", "--hashes", out]
        subprocess.run(command, cwd=tree, check=True, env=os.environ | {"PYTHONPATH": str(tree)})
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    return json.loads(out.read_text())


def compared(before, after):
    """Print what differs and return how many hashes do."""
    names = [name for name in before | after if before.get(name) != after.get(name)]
    for name in names:
        print(f"{name}: {before.get(name, 'not there')} before, {after.get(name, 'not there')} after")
    print(f"{len(before | after) - len(names)} of {len(before | after)} are the same")
    return len(names)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commits", nargs="*", help="two commits")
    parser.add_argument("--hashes", type=Path, help="write the hashes of this tree to a file")
    asked = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    os.environ["TQDM_DISABLE"] = "1"
    if asked.hashes is not None:
        sys.path.insert(0, str(ROOT))
        asked.hashes.write_text(json.dumps(hashes(), indent=1))
        return
    if len(asked.commits) != 2:
        parser.error(f"{len(asked.commits)} commits were named but must be two; name base and head")
    found = []
    for commit in asked.commits:
        with tempfile.TemporaryDirectory() as folder:
            found.append(of_commit(commit, folder))
    sys.exit(1 if compared(*found) else 0)


if __name__ == "__main__":
    main()
