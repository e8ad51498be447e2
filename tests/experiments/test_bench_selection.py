"""The benchmark's references and reports."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import facility_location, numpy_distances

from experiments.benchmarks import selection as bench


@pytest.mark.parametrize("kernel", ["euclidean", "exponential"])
def test_the_common_objective_is_the_definition(kernel):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3)).astype(np.float32)
    picks = rng.permutation(30)[:5]
    distances = numpy_distances(x)
    values = 1 - np.exp(-distances / 3) if kernel == "exponential" else distances
    np.testing.assert_allclose(bench.dissimilarity(x, kernel), values, atol=1e-12)
    similarities = values.max() - values
    np.testing.assert_allclose(
        bench.objective(x, picks, kernel, values.max()), facility_location(similarities, picks)
    )
    assert bench.mean_distance(x, x[picks]) == pytest.approx(distances[:, picks].min(axis=1).mean())


def test_ours_is_timed_from_embeddings_to_picks():
    x = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    picks, seconds = bench.run_ours(x, 30, "euclidean", 64 * bench.MIB)
    values = bench.dissimilarity(x, "euclidean")
    assert bench.gaps(values, picks, values.max()).max() <= 1e-6
    assert seconds > 0


def test_ours_chooses_from_a_graph_and_from_its_own():
    x = np.random.default_rng(2).normal(size=(300, 4)).astype(np.float32)
    graph, _ = bench.sparse_similarities(x, "euclidean", 20)
    picks, seconds = bench.run_ours_sparse(graph, 9)
    assert bench.gaps(-graph.toarray().astype(float), picks, 0.0).max() <= 1e-6
    assert seconds > 0
    own, _ = bench.run_ours_neighbors(x, 9, 20)
    assert len(set(own.tolist())) == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`")  # apricot names it as SciPy once did
def test_every_peer_reads_the_graph(tmp_path):
    config = bench.BenchConfig(out=tmp_path, sparse_sizes=(500,), neighbours=20, repeats=1)
    lines = list(bench.sparse(config))
    assert [line["method"] for line in lines] == [
        "ours", "ours, from embeddings", "apricot sparse", "submodlib sparse",
    ]  # fmt: skip
    values = [line["objective"] for line in lines]
    assert values[0] >= 0.999 * max(values)


def test_a_report_is_made_of_measurements(tmp_path):
    common = {
        "part": "pool",
        "data": "normal",
        "n": 5_000,
        "d": 10,
        "kernel": "max - distance",
        "size": 500,
    }
    timed = {"spread": [1, 3], "runs": 3, "objective": 2.0, "largest_gap": 1e-9}
    lines = [
        {"part": "batches", "problems": 5, "rows": 500, "size": 128, "classes": 10, "compile_s": 1.0,
         "ours": 0.002, "ours, max - distance": 0.001, "submodlib": 0.05,
         "spread": {"ours": [0.001, 0.003]}},
        dict(common, **timed, method="ours", seconds=0.5, compile_s=4.0),
        dict(common, **timed, method="apricot", seconds=5.0),
        dict(common, method="ours", peak_mib=50.0),
        {"part": "sparse", "n": 5_000, "size": 50, "neighbours": 50, "graph_s": 0.25, "method": "ours",
         "seconds": 0.1, "objective": 4.0},
        {"part": "sparse", "n": 5_000, "size": 50, "neighbours": 50, "graph_s": 0.25,
         "method": "apricot sparse", "seconds": 0.4, "objective": 3.0},
        {"part": "large", "n": 10, "d": 2, "size": 3, "method": "random", "seconds": 0.0,
         "mean_distance": 1.5},
        {"part": "extras", "n": 2_000, "what": "costs", "method": "ours", "seconds": 0.5,
         "objective": 4.0},
        {"part": "extras", "n": 2_000, "what": "costs", "method": "submodlib", "seconds": 2.0,
         "objective": 3.0},
    ]  # fmt: skip
    bench.summarise(lines, tmp_path)
    text = (tmp_path / "summary.md").read_text()
    assert "| 5 x 500, 10, 128 | 50.0 | 2.00 (1.00 to 3.00) | 25 | 1.0 | 1.00 |" in text
    assert "| normal | 5,000 | 10 | max - distance | apricot | 5 | 10.0 | 1.0e-09 | 1.0000000 |" in text
    assert "| 5,000 | crest_jax | 50 |" in text
    assert "| 2,000 | costs | submodlib | 2 | 4.0 | 0.7500000 |" in text
    assert "| 5,000, 50 (0.25 s) | crest_jax | 0.1 | 1.0 | 1.0000000 |" in text
    assert "| 5,000, 50 (0.25 s) | apricot sparse | 0.4 | 4.0 | 0.7500000 |" in text
    assert "| 10 x 2, 3 | random | 0 |  | 1.5000 |" in text
    assert (tmp_path / "selection.png").stat().st_size > 10_000


@pytest.mark.slow
def test_bad_settings_are_one_sentence(tmp_path):
    for flags, message in (
        (
            ["--parts", "pools"],
            "--parts has 'pools' but must be among batches, pool, sparse, large; drop it.",
        ),
        (["--neighbours", "1"], "--neighbours is 1 but must lie in [2, 5000]; 50 is usual."),
        (["--repeats", "0"], "--repeats is 0 but must be at least 1; ask for one run."),
    ):
        command = [
            sys.executable,
            "-m",
            "experiments.benchmarks.selection",
            "--out",
            str(tmp_path),
            *flags,
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode != 0
        assert message.split(" but")[0] in found.stderr + found.stdout
