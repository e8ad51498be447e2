"""The cost model says what a training really does and holds."""

import dataclasses
import gc

import numpy as np
import pytest
from small_run import ROOT, SMALL

from experiments.benchmarks import scaling
from experiments.benchmarks.cost_model import JOBS, Job, memory, predict, units
from experiments.benchmarks.scaling import Case, DevicesConfig
from experiments.harness import build
from experiments.harness.cli import UserError
from experiments.harness.options import MachineConfig
from experiments.harness.records import read_lines


def run_of(**crest):
    return dataclasses.replace(
        SMALL, budget=1.0, machine=MachineConfig(devices=0),
        crest=dataclasses.replace(SMALL.crest, select_span=(0.0, 1.0), **crest),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["regions", "fresh"])
def trained(request):
    run = run_of(regions=True) if request.param == "regions" else run_of(pause_above=1.0)
    build.make_program.cache_clear()
    build._array_sources.cache_clear()
    gc.collect()
    before = scaling.on_first_device()
    made = build.make_program(build.shared(run))
    found = scaling.train(made, DevicesConfig(steps=60, warm=20, run=run))
    held = scaling.on_first_device() - before
    return run, made, found, held


@pytest.mark.slow
def test_the_work_is_what_the_run_counted(trained):
    run, _, found, _ = trained
    _, selected = found["state"]
    crest, work, steps = run.crest_config(60, 1442), selected.work, 60
    of_region = {}
    if crest.region is not None:
        assert selected.num_regions >= 3
        of_region = {
            "region": steps / selected.num_regions,
            "coresets": selected.num_selected / selected.num_regions,
            "checks": work.check_forward / crest.region.probe_size / selected.num_regions,
        }
    said = units(scaling.job_of(crest, **of_region))
    assert said.step == 3 * crest.batch_size
    assert said.selection * steps == pytest.approx(work.selection_forward)
    curvature = work.curvature_forward + 2 * work.curvature_backward
    assert said.curvature * steps == pytest.approx(curvature)


@pytest.mark.slow
def test_the_bytes_are_those_that_lie_on_the_device(trained):
    run, made, found, held = trained
    said = scaling.predicted_bytes(made, run, 1, found["state"][0])
    assert abs(held - said) < len(made.train), "to less than a byte an example"


def test_devices_share_the_work_but_for_what_a_region_scores_in_vain():
    one, eight = units(Job()), units(Job(devices=8))
    assert (eight.step, eight.selection) == (one.step / 8, one.selection / 8)
    assert one.curvature == one.check == 0, "each step chooses its own coreset"
    one, eight = units(Job(regions=True)), units(Job(regions=True, devices=8))
    for name in ("step", "curvature", "check"):
        assert getattr(eight, name) == getattr(one, name) / 8 > 0
    assert eight.selection == one.selection * (1 / 8 + 2) / 16  # the first, and 15 of 8 at a time


def test_devices_that_score_in_vain_read_too():
    few = Job(devices=64, bandwidth=1e18, regions=True)  # 48 of the last 64 subsets are in vain
    many = dataclasses.replace(few, devices=1, unit_seconds=few.unit_seconds)
    rows = [predict(job).read * (predict(job).step_seconds / job.input_bytes) for job in (few, many)]
    assert rows[0] > 2 * rows[1] / 64


def test_memory_by_where_the_inputs_are():
    whole, shard, host = (
        memory(Job(examples=1001, devices=4, stored=stored)) for stored in ("whole", "shard", "host")
    )
    assert (whole.inputs, shard.inputs, host.inputs) == (1001 * 784, 251 * 784, 0)
    assert host.per_example == 10 * 1001
    assert whole.per_example == 14 * 1001
    assert memory(Job(examples=1001, classes=300, stored="host")).per_example == 11 * 1001
    for regions, more in ((True, 2 * 4), (False, 0)):  # the anchor and the gradient
        large, small = (memory(Job(parameters=p, regions=regions)).crest for p in (20_001, 20_000))
        assert large - small == more


def test_what_it_predicts_hangs_together():
    for job in (Job(), *JOBS.values()):
        said = predict(job)
        assert said.speedup == pytest.approx(10 / (1 + said.overhead))
        slow = predict(dataclasses.replace(job, unit_seconds=2 * job.unit_seconds))
        assert slow.step_seconds > said.step_seconds
        assert slow.read < said.read
    assert predict(Job(span=0.0)).overhead == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"devices": 0}, "--devices is 0 but must be positive"),
        ({"checks": 0.5}, "--checks is 0.5 but must be at least 1"),
        ({"span": 1.5}, r"--span is 1.5 but must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        Job(**change)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--crest.region.probe-size", "64")])
def test_the_benchmark_compares_devices_and_processes(tmp_path, monkeypatch, options):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(scaling, "cases", lambda config: [Case(1), Case(2), Case(1, 2, cores=1)])
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv",
        [
            "bench_devices", "--steps", "24", "--warm", "8", "--out", str(out), "--dataset", "digits",
            "--model", "mlp", "--network.width", "16", "--batch-size", "64", *options,
        ],
    )  # fmt: skip
    scaling.main()
    lines = read_lines(out / "devices.jsonl")
    assert [line["devices"] for line in lines] == [1, 2, 2]
    assert lines[0]["steps_alike"] == 24
    assert lines[0]["params_gap"] == 0
    for line in lines:
        assert line["steps_alike"] > 0
        assert line["bytes_measured"] == pytest.approx(line["bytes_predicted"], rel=0.05)
        assert np.isfinite(line["params_gap"])
    assert "2 processes of 1 device, one core each" in (out / "devices.md").read_text()
