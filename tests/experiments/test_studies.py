"""The map: which runs it makes, that its second half takes CREST's seconds, and what it writes."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import presets
from experiments.benchmarks import costs
from experiments.config import TrainConfig
from experiments.harness.cli import UserError
from experiments.harness.options import (
    CrestOptions,
    ExclusionOptions,
    NetworkConfig,
    RunConfig,
)
from experiments.harness.records import read_lines
from experiments.harness.stats import equivalent_batch
from experiments.studies import equivalent, own_rates, regions, settings_map, variants

RUN = TrainConfig(
    dataset="digits", model="mlp", epochs=4, budget=0.5, batch_size=64,
    network=NetworkConfig(width=16), run=RunConfig(evaluations=2, checkpoints=1),
    crest=CrestOptions(exclusion=ExclusionOptions(window=8)),
)  # fmt: skip


def test_the_settings_are_those_of_the_protocol():
    short = presets.SETTINGS["short_resnet"]
    assert short.run.steps(20_000) == 320
    assert presets.SETTINGS["long_resnet"].run.steps(20_000) == 3140
    assert presets.SETTINGS["imbalanced_mlp"].run.steps(20_000) == 462
    once = short.options("crest", 3)
    more = presets.longer(once, 1.5)
    assert (more.method, more.seed, more.steps(20_000)) == ("crest", 3, 480)
    assert dataclasses.replace(more, budget=once.budget) == once
    beyond = presets.longer(presets.SETTINGS["imbalanced_long_mlp"].options("random", 0), 1.5)
    assert beyond.steps(20_000) == round(1.5 * 0.75 * 3080)
    rated = dataclasses.replace(short, rates={"random": 0.3})
    assert rated.options("random", 0).optim.learning_rate == 0.3
    assert rated.options("crest", 0).optim.learning_rate == 0.1


@pytest.mark.slow
def test_costs_are_medians_of_what_was_timed(tmp_path, monkeypatch, capsys):
    out = tmp_path / "costs"
    options = ["--dataset", "digits", "--model", "mlp", "--network.width", "16", "--batch-size", "64"]
    options += ["--rounds", "3", "--warm-steps", "30"]
    monkeypatch.setattr("sys.argv", ["costs", *options, "--out", str(out)])
    costs.main()
    lines = [json.loads(line) for line in (out / "costs.jsonl").read_text("utf-8").splitlines()]
    said = capsys.readouterr().out
    for line in lines[:-1]:
        assert len(line["seconds"]) == 3
        assert f"{1e3 * np.median(line['seconds']):.2f}" in said
    ratios = lines[-1]["ratios"]
    assert 0 < ratios["r = 8m"] < ratios["r = 4m"] < ratios["r = 2m"] < 1
    assert ratios["r = 4m, weights re-fitted"] < ratios["r = 4m"]


def test_refitted_weights_give_the_mean_and_stay_non_negative():
    rng = np.random.default_rng(0)
    picked = np.float32(rng.normal(size=(40, 5)))
    weights = np.float32(rng.integers(1, 9, 40))
    target = np.float32(0.1 * rng.normal(size=5))
    found = np.asarray(costs.refit(weights, picked, target))
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(), weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(found @ picked / found.sum(), target, atol=1e-4)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(variants.SETTINGS, "tiny", presets.Setting(RUN))


@pytest.mark.slow
def test_every_variant_changes_what_it_says_and_runs(tmp_path, tiny):
    config = variants.VariantConfig("imbalanced_mlp", ("crest",), tmp_path)
    runs = [config.options(name, 0) for name in variants.VARIANTS]
    assert len({dataclasses.replace(run, out=tmp_path) for run in runs}) == len(runs)
    assert config.options("importance_8m", 0).crest.subset_size == 8 * 130
    assert config.options("paper", 0).preset == "paper"
    small = dataclasses.replace(config, setting="tiny", seeds=(0,))
    planned = [(name, small.options(name, 0)) for name in variants.VARIANTS]
    found = variants.run_variants(small, planned)
    assert [run["variant"] for run in found] == list(variants.VARIANTS)
    work = {run["variant"]: run["forward"].get("selection", 0) for run in found}
    assert work["importance_8m"] == 2 * work["importance_4m"] == 4 * work["importance_2m"] > 0
    assert work["stratified"] == work["random"] == 0


@pytest.mark.slow
def test_the_equivalent_batch_of_a_larger_batch_is_its_size(tmp_path, tiny, capsys):
    """Runs of twice the batch, named as a variant, must come out as two at the cost of two."""
    arguments = ["--setting", "tiny", "--variants", "crest", "importance_2m", "paper"]
    arguments += ["--sizes", "1", "2", "--seeds", "0", "1", "--out", str(tmp_path / "runs")]
    equivalent.main(arguments)
    runs = read_lines(tmp_path / "runs" / "summary.jsonl")
    names = [run["variant"] for run in runs]
    assert names[:5] == ["1", "2", "crest", "importance_2m", "paper"]
    at_equal_steps = [run for run in runs if "factor" not in run]
    assert len({run["steps"] for run in at_equal_steps}) == 1
    passed = {run["variant"]: run["forward"]["step"] for run in runs}
    assert passed["2"] == 2 * passed["1"] == 2 * passed["crest"]
    factors = equivalent.factors(runs)
    if min(factors.values()) > 1:
        assert set(names[-4:]) == {"longer", "larger"}
        for name, factor in factors.items():
            assert passed[name] == pytest.approx(factor * passed["1"], rel=0.05)
    better, seconds = {"1": 0.80, "2": 0.84}, {"1": 1.0, "2": 1.6}

    def told(run):
        name = run["variant"]
        return dict(run, curve=[{"accuracy": better[name]}], training_seconds=seconds[name])

    plain = [told(run) for run in runs if run["variant"] in better]
    own = [dict(run, variant="crest") for run in plain if run["variant"] == "2"]
    text = equivalent.summarise(plain + own)
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")]
    assert cells[9] == "2.00 [2.00, 2.00]"
    assert cells[10] == cells[11] == "1.00 [1.00, 1.00]"
    assert (
        equivalent.worth_of([run for run in plain + own if run["seed"] == 0], "crest").text(1) == "2.00"
    )
    full = [dict(run, variant="full", training_seconds=8.0) for run in plain if run["variant"] == "2"]
    beside = [line.split("|") for line in equivalent.summarise(plain + full).splitlines()]
    column = [cell.strip() for cell in beside[0]].index("relative error to full, %")
    assert beside[2][column].split() == ["4.76", "±", "0.00"]
    unequal = [run | {"timed": False} for run in plain + full]
    untimed = equivalent.summarise(unequal).splitlines()[0]
    assert "cost, steps" in untimed
    assert "seconds" not in untimed
    assert "as long" not in untimed
    capsys.readouterr()
    again = ["--done", str(tmp_path / "runs"), "--out", str(tmp_path / "again")]
    equivalent.main([*arguments[:-2], *again])
    assert read_lines(tmp_path / "again" / "summary.jsonl") == runs
    assert [path.name for path in (tmp_path / "again").iterdir() if path.is_dir()] == []
    part = ["--variants", "crest", "--only-done", "--no-timed", "--out", str(tmp_path / "part")]
    held = [*arguments[:2], "--sizes", "1", "2", "--done", str(tmp_path / "runs"), "--seeds"]
    equivalent.main([*held, "0", "1", *part])
    kept = [run["variant"] for run in read_lines(tmp_path / "part" / "summary.jsonl")]
    assert kept == ["1", "1", "2", "2", "crest", "crest"]
    equivalent.main([*held, "1", *part[:-1], str(tmp_path / "one")])
    assert {run["seed"] for run in read_lines(tmp_path / "one" / "summary.jsonl")} == {1}
    for wrong, message in (
        (
            ["--variants", "random", *part[2:], "--done", str(tmp_path / "runs")],
            "no runs of random with the seeds",
        ),
        (part, "--done names no folder; name"),
    ):
        with pytest.raises(SystemExit, match=message):
            equivalent.main([*arguments[:2], "--sizes", "1", "2", "--seeds", "0", "1", *wrong])
    with pytest.raises(SystemExit, match=r"whose runs are of .* but must hold runs of"):
        equivalent.main([*arguments[:-2], *again[:-1], str(tmp_path / "other"), "--rate", "0.3"])
    settings = settings_map.read_settings((tmp_path / "runs",))
    assert list(settings) == ["tiny"]
    lead = 100 * (runs[2]["test_accuracy"] - runs[0]["test_accuracy"])
    assert settings_map.leads(settings["tiny"], "1")[0] == pytest.approx(lead)
    assert f"{np.mean(settings_map.leads(settings['tiny'], '1')):+.2f} ± " in settings_map.summarise(
        settings
    )
    untimed = settings_map.read_settings((tmp_path / "part",))
    assert settings_map.leads(untimed["tiny"], "1") == settings_map.leads(settings["tiny"], "1")
    assert settings_map.leads(untimed["tiny"], "larger") == []
    assert "as long" not in settings_map.summarise(untimed)
    settings_map.draw(settings, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_settings_that_differ_have_names_that_differ(tmp_path):
    config = variants.VariantConfig("short_resnet", ("crest",), tmp_path)
    changes = [{}, {"norm": "group"}, {"rate": 0.2}, {"budget": 0.3}, {"evaluate_on": "validation"}]
    asked = [dataclasses.replace(config, **change).asked() for change in changes]
    assert len({settings_map.name_of([{"asked": own}]) for own in asked}) == len(asked)


@pytest.mark.parametrize(
    ("accuracy", "size"),
    [(80.0, 1.0), (84.0, 2.0), (86.0, 4.0), (82.0, 2**0.5), (88.0, 8.0), (72.0, 0.25)],
)
def test_equivalent_batches_lie_on_the_line_of_the_sizes(accuracy, size):
    found = equivalent_batch(accuracy, (1, 2, 4), (80.0, 84.0, 86.0))
    assert found == pytest.approx(size)
    assert np.isnan(equivalent_batch(accuracy, (1, 2), (86.0, 85.0)))


def test_a_table_of_regions_says_what_its_checks_found():
    def check(step, began, rho, unchanged):
        return {"step": step, "began_region": began, "rho": rho, "rho_unchanged": unchanged}

    checks = [
        check(0, True, None, None), check(8, False, 0.01, 0.04), check(16, True, 0.3, 0.2),
        check(60, True, 0.5, 0.1), check(70, False, 0.05, 0.06),
    ]  # fmt: skip
    run = {
        "variant": "regions_4m", "seed": 0, "steps": 100, "checks": checks, "training_seconds": 3.0,
        "forward": {"step": 6400, "selection": 9600}, "backward": {"step": 6400},
        "curve": [{"accuracy": 0.9}],
    }  # fmt: skip
    plain = run | {"variant": "stratified", "checks": [], "training_seconds": 2.0}
    plain["forward"] = {"step": 6400}
    config = regions.RegionsConfig(variants=("stratified", "regions_4m"), seeds=(0,))
    cells = [x.strip() for x in regions.summarise(config, [plain, run]).splitlines()[-1].split("|")]
    assert cells[2] == "90.00"
    assert cells[3].startswith("0.175 [")  # the median of 0.01, 0.05, 0.3 and 0.5
    assert cells[5] == "50.00"
    assert cells[6] == "30 [23, 37]"  # 16 and 44 steps
    assert cells[7] == "40 [40, 40]"
    assert cells[8:10] == ["1.50", "1.50"]


@pytest.mark.slow
def test_rates_are_chosen_on_validation_rows_and_judged_on_test_rows(tmp_path, monkeypatch):
    images = dataclasses.replace(RUN, dataset="fashion_mnist_20k", epochs=1, budget=0.1)
    monkeypatch.setitem(variants.SETTINGS, "tiny", presets.Setting(images))
    arguments = ["--setting", "tiny", "--variants", "random", "--rates", "1e-6", "0.1", "--seeds", "5"]
    own_rates.main([*arguments, "--validation-seeds", "0", "1", "--out", str(tmp_path)])
    runs = read_lines(tmp_path / "summary.jsonl")
    assert [(run["variant"], run["seed"], run["rate"]) for run in runs] == [
        ("1", 5, 0.1),
        ("2", 5, 0.1),
        ("random", 5, 0.1),
    ]
    again = json.loads((tmp_path / "test_0.1" / "random-seed5" / "config.json").read_text("utf-8"))
    assert again["data"]["evaluate_on"] == "test"
    for run in runs:
        (low, worse), (high, better) = run["validation"]
        assert (low, high) == (1e-6, 0.1)
        assert worse < better
    seen = [
        read_lines(tmp_path / "validation_0.1" / f"random-seed{seed}" / "events.jsonl")[-1]["accuracy"]
        for seed in (0, 1)
    ]
    assert better == pytest.approx(100 * np.mean(seen))
    cells = own_rates.summarise(runs).splitlines()[-1].split("|")
    assert [cell.strip() for cell in cells[1:6]] == [
        "random",
        f"{worse:.2f}",
        f"{better:.2f}",
        "0.1",
        "1",
    ]


def test_a_rate_at_which_a_run_diverges_is_out(tmp_path, monkeypatch):
    def run_variants(config, planned):
        [(name, options)] = planned
        rate = options.optim.learning_rate
        if (name == "random" and rate > 0.1 and options.seed == 1) or rate > 1:
            raise FloatingPointError("the loss is NaN")
        work = {"forward": {"step": 64}, "backward": {"step": 64}, "steps": 1}
        curve, seconds = [{"accuracy": min(rate, 0.9)}], {"training_seconds": 1.0}
        return [{"variant": name, "seed": options.seed, "curve": curve} | work | seconds]

    monkeypatch.setattr(own_rates, "run_variants", run_variants)
    config = own_rates.OwnRatesConfig(
        setting="mlp_20k", variants=("random",), rates=(0.1, 0.2), validation_seeds=(0, 1),
        seeds=(5, 6), out=tmp_path,
    )  # fmt: skip
    runs = own_rates.run_all_of(config)
    assert {run["variant"]: run["rate"] for run in runs} == {"1": 0.2, "2": 0.2, "random": 0.1}
    assert "| random         | 10.00  | diverges | 0.1  | 2     |" in own_rates.summarise(runs)
    with pytest.raises(UserError, match="but stratified, 1m diverges at all of them; add lower ones"):
        own_rates.run_all_of(dataclasses.replace(config, rates=(2.0, 3.0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": (0.1,)}, "must hold two positive rates or more"),
        ({"rates": (0.1, -1.0)}, "must hold two positive rates or more"),
        ({"validation_seeds": (1, 100)}, "a rate must not be chosen on the seeds that it is judged on"),
        ({"sizes": (2,)}, "--sizes is"),
    ],
)
def test_bad_own_rates_get_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        own_rates.OwnRatesConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "none"}, "--setting is none but must be one of"),
        ({"variants": ("best",)}, "--variants holds best but must be of"),
        ({"sizes": (2, 4)}, r"--sizes is \(2, 4\) but must hold 1 and at least one larger"),
        ({"seeds": ()}, "there must be one of each"),
    ],
)
def test_bad_equivalents_get_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        equivalent.EquivalentConfig(**options)
