"""Data that are read as they are needed: the same rows, fetched ahead, and errors in a sentence."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_settings import exclusion, settings

from crest_jax import (
    ArraySource,
    HostSource,
    crest,
    cross_entropy,
    dynamic_pruning,
    fit,
    from_records,
    random_batches,
    stratified_batches,
)
from crest_jax.baselines import fixed_subset
from crest_jax.data.host import DEPTH

COUNT, FEATURES, CLASSES, STEPS = 120, 5, 3, 30
RNG = np.random.default_rng(0)
LABELS = RNG.choice(CLASSES, COUNT, p=[0.5, 0.3, 0.2])
INPUTS = (RNG.normal(size=(CLASSES, FEATURES))[LABELS] + RNG.normal(size=(COUNT, FEATURES))).astype(
    np.float32
)
CONFIG = settings(
    batch_size=12, subset_size=24, probe_size=24, max_coresets=4, interval_multiplier=3.0, tau=0.02,
    select_from=6, select_until=24, exclusion={"threshold": 0.5, "window": 8, "cooldown": 2},
)  # fmt: skip


def linear(params, model_state, inputs, *, train, rng):
    return inputs @ params, model_state


class Slow:
    """Rows of ``INPUTS``, with the thread that read them."""

    def __init__(self):
        self.reads = []

    def __call__(self, rows):
        self.reads.append((threading.current_thread().name, rows.tolist()))
        return INPUTS[rows]


METHODS = {
    "crest": lambda source: crest(linear, source, CONFIG),
    "random": lambda source: random_batches(source, 12),
    "stratified": lambda source: stratified_batches(source, 12),
    "dynamic_pruning": lambda source: dynamic_pruning(source, 12, exclusion(threshold=0.5, window=8)),
    "fixed": lambda source: fixed_subset(source, 12, 30),
}


@jax.jit
def step(params, batch):
    def loss(params):
        losses = cross_entropy(batch.inputs @ params, batch.labels)
        return jnp.sum(batch.weights * losses) / jnp.sum(batch.weights), losses

    (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return params - 0.5 * gradient, losses


def train(method, source, steps=STEPS):
    selection, batches = METHODS[method](source), []

    def spied(params, batch):
        batches.append(batch.indices)
        return step(params, batch)

    params = fit(
        selection, spied, jnp.zeros((FEATURES, CLASSES)), key=jax.random.key(1), steps=steps,
        view=lambda params: (params, {}), losses=lambda losses: losses,
    )  # fmt: skip
    return np.asarray(params), np.asarray(batches)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_gives_the_very_training_that_arrays_give(method, tmp_path):
    np.save(tmp_path / "inputs.npy", INPUTS)
    there = HostSource(np.load(tmp_path / "inputs.npy", mmap_mode="r"), LABELS)
    params, rows = train(method, ArraySource(INPUTS, LABELS))
    others, other_rows = train(method, there)
    assert (rows == other_rows).all()
    assert (params == others).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crest", "stratified"])
def test_mini_batches_are_read_once_and_before_they_are_asked_for(method):
    read = Slow()
    source = HostSource(read, LABELS)
    asked = []
    take, prefetch = source.take, source.prefetch
    source.take = lambda rows: (asked.append((id(rows), len(read.reads))), take(rows))[1]
    ahead = []
    source.prefetch = lambda rows: (ahead.append(rows), prefetch(rows))[1]
    _, rows = train(method, source)
    names = {name for name, _ in read.reads}
    assert all(name.startswith("crest_jax-read") for name in names - {threading.current_thread().name})
    known = {id(rows) for rows in ahead}
    taken = [place for place, _ in asked]
    # All but the probe rows and the rows of the curvature, which are read at once.
    assert sum(place in known for place in taken) >= len(rows)
    times = [reads for _, reads in read.reads]
    for batch in rows[1:].tolist():
        assert times.count(batch) <= 2


def test_fetches_that_nobody_asks_for_are_thrown_away():
    source = HostSource(INPUTS, LABELS)
    kept = [jnp.arange(i, i + 4) for i in range(3 * DEPTH)]
    for rows in kept:
        source.prefetch(rows)
    assert len(source._waiting) == DEPTH
    for rows in kept:
        assert (np.asarray(source.take(rows).inputs) == INPUTS[np.asarray(rows)]).all()
    assert not source._waiting


@pytest.mark.slow
def test_tensorflow_datasets_are_read_as_they_lie_on_the_disk(tmp_path):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent
        name = "tiny"

        def _info(self):
            values = tfds.features.Tensor(shape=INPUTS.shape[1:], dtype=np.float32)
            label = tfds.features.ClassLabel(num_classes=CLASSES)
            features = tfds.features.FeaturesDict({"values": values, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for row in range(COUNT):
                yield row, {"values": INPUTS[row], "label": int(LABELS[row])}

    builder = Tiny(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    records = builder.as_data_source("train")
    labels = np.array([record["label"] for record in records])
    source = from_records(records)
    assert source.classes.tolist() == labels.tolist()
    found = source.take(jnp.array([7, 3]))
    assert (np.asarray(found.inputs) == [records[7]["values"], records[3]["values"]]).all()
    assert found.labels.tolist() == labels[[7, 3]].tolist()
    _, rows = train("crest", source)
    assert len(rows)


def test_grain_is_read():
    grain = pytest.importorskip("grain")
    records = grain.MapDataset.source(INPUTS).map(lambda values: {"values": 2 * values})
    source = from_records(records, lambda record: (record["values"], 0), classes=LABELS)
    assert source.classes.tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match="leave out repeat"):
        from_records(records.repeat())
    assert (np.asarray(source.take(jnp.array([7, 3])).inputs) == 2 * INPUTS[[7, 3]]).all()


def test_an_error_of_the_reader_comes_to_the_training():
    def read(rows):
        if len(rows) > 1:
            raise OSError("the disk has gone")
        return INPUTS[rows]

    source = HostSource(read, LABELS)
    with pytest.raises(OSError, match="the disk has gone"):
        train("stratified", source)


@pytest.mark.parametrize(
    ("inputs", "labels", "sentence"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "must hold at least one example"),
        (INPUTS, LABELS[:-1], "labels have shape"),
    ],
)
def test_bad_data_are_refused(inputs, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        HostSource(inputs, labels)


def test_a_reader_that_gives_other_shapes_is_named():
    source = HostSource(lambda rows: INPUTS[rows] if len(rows) == 1 else INPUTS[rows][:, :2], LABELS)
    with pytest.raises(ValueError, match="reading 4 rows gave float32 of shape"):
        source.take(jnp.arange(4))


def test_a_reader_may_use_its_memory_again():
    room = np.zeros(4 * 4 * FEATURES + 64, np.uint8)  # JAX shares memory that begins at such a place
    start = -room.ctypes.data % 64
    memory = room[start : start + 4 * 4 * FEATURES].view(np.float32).reshape(4, FEATURES)

    def read(rows):
        memory[: len(rows)] = INPUTS[rows]
        return memory[: len(rows)]

    for mesh in (None, jax.make_mesh((1,), ("data",))):
        source = HostSource(read, LABELS, mesh=mesh)
        first, second = (source.take(jnp.arange(i, i + 4)).inputs for i in (0, 8))
        assert (np.asarray(first) == INPUTS[:4]).all()
        assert (np.asarray(second) == INPUTS[8:12]).all()


FORKED = """
import os, signal, warnings
warnings.simplefilter("ignore")
import jax.numpy as jnp, numpy as np
from crest_jax import HostSource
source = HostSource(np.zeros((6, 2)), np.zeros(6, int))
source.take(rows := jnp.arange(3))
child = os.fork()
if child == 0:
    signal.alarm(60)
    for call in (source.take, source.prefetch):
        try:
            call(rows)
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
print("status", os.waitpid(child, 0)[1])
"""


def test_a_forked_child_is_told_instead_of_waiting_for_ever():
    command = [sys.executable, "-c", FORKED]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *sentences, status = found.stdout.splitlines()
    assert status == "status 0", "it did not hang until the alarm"
    assert len(sentences) == 2
    for sentence in sentences:
        assert re.search(r"this HostSource was made in process \d+, .*; start worker", sentence)


def test_a_state_asked_twice_gives_arrays_of_their_own():
    selection = METHODS["crest"](HostSource(INPUTS, LABELS))
    params = jnp.zeros((FEATURES, CLASSES))
    state = selection.init(jax.random.key(0), params, {})
    for _ in range(12):
        state, _ = selection.refresh(state, params, {})
        batch = selection.next_batch(state)[1]
        rows = batch.indices.tolist()
        for leaf in batch:
            leaf.delete()
        state, again = selection.next_batch(state)
        assert again.indices.tolist() == rows
