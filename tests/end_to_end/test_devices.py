"""Several devices and processes choose what one device chooses."""

import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from socket import socket

import jax
import numpy as np
import pytest
from several_devices import SELECTIONS, STREAM, STREAM_SPLIT, pool, stream

from crest_jax import select_coreset, select_coreset_sharded

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "several_devices.py"


def start(log, *arguments):
    """Start the program; what it says goes to a file, for a full pipe would stop it."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)], stdout=log, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finish(processes, log):
    """Wait for all; when one fails, the others would wait for it for ever."""
    try:
        for process in processes:
            code = process.wait(timeout=240)
            log.seek(0)
            assert code == 0, log.read()[-4000:].decode()
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_port():
    with closing(socket()) as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run(out, *arguments, devices=1, processes=1):
    more = ["--address", f"localhost:{free_port()}"] if processes > 1 else []
    with tempfile.TemporaryFile() as log:
        started = [
            start(
                log, "--devices", devices // processes, "--processes", processes, "--process", number,
                "--out", out, *more, *arguments,
            )
            for number in range(processes)
        ]  # fmt: skip
        finish(started, log)
    return dict(np.load(out))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "found.npz", "--x64", "--no-mesh")


def same(found, alone):
    assert (found["rows"] == alone["rows"]).all()
    assert (found["weights"] == alone["weights"]).all()
    assert (found["events"] == alone["events"]).all()
    np.testing.assert_allclose(found["params"], alone["params"], rtol=1e-9, atol=1e-9)
    # The losses that CREST reports are means in float32, whose order differs.
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-5, atol=1e-6)


def test_the_run_that_others_are_compared_with_selects_again_and_excludes(alone):
    regions, excluded = alone["events"][:, 1], alone["events"][:, 3]
    assert regions.max() >= 4
    assert excluded.max() > 0
    assert alone["late"][0] > 0


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("source", "devices"),
    [("shard", 8), slow("host", 4), slow("whole", 8), slow("host", 8), slow("whole", 2)],
)
def test_several_devices_take_the_steps_of_one(tmp_path, alone, source, devices):
    found = run(tmp_path / "found.npz", "--x64", "--source", source, devices=devices)
    assert found["devices"] == devices
    same(found, alone)
    # The first region, its end, its extension, a window and the end of selection compile; the rest not.
    assert not found["late"][20:40].any(), found["late"]


def test_several_devices_take_many_steps_in_one_program(tmp_path, alone):
    options = "--x64", "--source", "shard", "--scan", 8
    found = run(tmp_path / "found.npz", *options, devices=4)
    assert found["devices"] == 4  # each holds its part of every mini-batch
    same(found, alone)


@pytest.mark.slow
def test_several_devices_draw_the_coresets_of_one_in_programs_and_one_by_one(tmp_path):
    alone = run(tmp_path / "alone.npz", "--x64", "--no-mesh", "--fresh")
    assert alone["events"][:, 3].max() > 0
    assert alone["scored"].tolist() == [40]
    for source, scan in (("shard", 8), ("whole", 1), ("host", 1)):
        options = "--x64", "--fresh", "--source", source, "--scan", scan
        found = run(tmp_path / f"{source}.npz", *options, devices=4)
        assert found["scored"].tolist() == [10], "four devices share out the rows of a subset"
        assert (found["rows"] == alone["rows"]).all()
        np.testing.assert_allclose(found["weights"], alone["weights"], rtol=1e-4)
        np.testing.assert_allclose(found["params"], alone["params"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("source", [slow("whole"), "shard", slow("host")])
def test_two_processes_of_four_devices_take_the_steps_of_one(tmp_path, alone, source):
    found = run(tmp_path / "found.npz", "--x64", "--source", source, devices=8, processes=2)
    assert found["devices"] == 8
    same(found, alone)


def dissimilarities(points, metric):
    """All pairs in float64, by their definitions."""
    points = points.astype(np.float64)
    if metric == "cosine":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return 1 - points @ points.T
    squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    if metric == "sqeuclidean":
        return squared
    distances = np.sqrt(squared)
    return 1 - np.exp(-distances / points.shape[1]) if metric == "exponential" else distances


def check_greedy(found, points, size, labels, options):
    """Every pick has the best gain of its class to 1e-6, in float64; weights count the nearest rows."""
    values = dissimilarities(points, options.get("metric", "euclidean"))
    labels = np.zeros(len(points), int) if labels is None else labels
    quotas = np.bincount(labels[found["indices"]], minlength=labels.max() + 1)
    if "quotas" in options:
        assert quotas.tolist() == options["quotas"]
    same = labels[:, None] == labels[None]
    counted = same & (quotas[labels] > 0)[None]
    top = 1.0 if options.get("metric") == "exponential" else values[counted].max()
    assert len(set(found["indices"].tolist())) == size
    assert (np.diff(labels[found["indices"]]) >= 0).all()
    cover, free = np.full(len(points), top), np.ones(len(points), bool)
    for pick, gain in zip(found["indices"], found["gains"], strict=True):
        own = labels == labels[pick]
        gains = np.where(own & free, np.maximum(cover[own, None] - values[own], 0).sum(axis=0), -1)
        assert gains[pick] >= gains.max() * (1 - 1e-6) - 1e-9
        assert gain == pytest.approx(gains[pick], rel=1e-5, abs=1e-4)
        cover[own] = np.minimum(cover[own], values[own, pick])
        free[pick] = False
    assert found["weights"].sum() == len(points)
    picks = found["indices"]
    allowed = same[:, picks] | (quotas[labels] == 0)[:, None]
    nearest = np.where(allowed, values[:, picks], np.inf)
    nearest[picks] = np.where(np.eye(size, dtype=bool), -1, nearest[picks])
    counts = np.bincount(nearest.argmin(axis=1), minlength=size)
    assert np.abs(counts - found["weights"]).max() <= 1


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        *(slow(name, 1) for name in SELECTIONS if name != "ties"),
        ("ties", 1),
        slow("plain", 2),
        slow("without", 2),
    ],
)
def test_greedy_over_a_pool_spread_over_eight_devices_is_exact(tmp_path, name, processes):
    points, size, labels, options = pool(name)
    found = run(tmp_path / "found.npz", "--select", name, devices=8, processes=processes)
    check_greedy(found, points, size, labels, options)
    alone = select_coreset(
        points, size, labels=labels,
        **{key: value for key, value in options.items() if key != "proposals"},
    )  # fmt: skip
    assert found["objective"] == pytest.approx(float(alone.objective), rel=1e-5)
    if name == "ties":
        assert found["indices"].tolist() == alone.indices.tolist(), "equal gains go to the lowest row"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 11}, "size is 11 but the pool holds 10"),
        ({"metric": "precomputed"}, "metric is 'precomputed' but must be one of"),
        ({"embeddings": np.full((10, 2), np.nan)}, "NaN or infinite"),
        ({"embeddings": np.zeros(10)}, r"must be \[n, d\]"),
        ({"labels": np.zeros(9, int)}, "labels have shape"),
        ({"proposals": 0}, "proposals is 0 but must be"),
    ],
)
def test_bad_pools_are_refused_in_a_sentence(change, sentence):
    options = {"embeddings": np.eye(10), "size": 3, "mesh": jax.make_mesh((1,), ("data",)), **change}
    with pytest.raises(ValueError, match=sentence):
        select_coreset_sharded(options.pop("embeddings"), options.pop("size"), **options)


@pytest.mark.slow
def test_two_processes_choose_from_the_streams_of_both(tmp_path):
    found = run(tmp_path / "found.npz", "--stream", processes=2, devices=2)
    points, labels = stream()
    values = dissimilarities(points, "euclidean")
    for name in ("array", "pairs"):
        fields = ("indices", "weights", "gains", "objective")
        for field in fields:
            both = found[f"{name}_{field}"]
            assert (both[0] == both[1]).all(), "all processes get the same"
        picks, weights = found[f"{name}_indices"][0], found[f"{name}_weights"][0]
        assert len(set(picks.tolist())) == STREAM["size"]
        assert {True, False} == set((picks < STREAM_SPLIT).tolist()), "some of each process"
        assert weights.sum() == pytest.approx(len(points), rel=1e-6)
        quotas = np.bincount(labels[picks])
        wanted = STREAM["size"] * np.bincount(labels) / len(points)
        assert (np.abs(quotas - wanted) < 1).all()
        same = labels[:, None] == labels[None, picks]
        to_picks = np.where(same, values[:, picks], np.inf)
        if name == "array":
            nearest = np.bincount(to_picks.argmin(axis=1), minlength=STREAM["size"])
            assert np.abs(nearest - weights).max() <= 1
        exact = select_coreset(points, STREAM["size"], labels=labels, num_classes=3)
        heads = np.asarray(exact.indices)
        best = np.where(labels[:, None] == labels[None, heads], values[:, heads], np.inf)
        cost, least = to_picks.min(axis=1).sum(), best.min(axis=1).sum()
        assert cost <= 1.15 * least, "nearly what one exact run reaches"
    apart = np.repeat([0, 1, 2, 3], 60)[found["apart_indices"][0]]
    assert np.bincount(apart).tolist() == [2, 2, 2, 2], "classes are those that the labels name"
    assert "process 1 refuses its rows" in found["error_nan"][0]
    assert "NaN or infinite" in found["error_nan"][1]
    for name in ("width", "empty"):
        assert found[f"error_{name}"][0] == found[f"error_{name}"][1]
        assert "in the processes but all except the last must agree" in found[f"error_{name}"][0]
