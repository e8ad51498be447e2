"""The map: which runs it makes, that its second half takes CREST's seconds, and what it writes."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

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
from experiments.studies import ablations, equal_time, equivalent, pilot_check

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
    once, more = (short.options("crest", 3, factor) for factor in (1.0, 1.5))
    assert (more.method, more.seed, more.steps(20_000)) == ("crest", 3, 480)
    assert dataclasses.replace(more, budget=once.budget) == once
    beyond = presets.SETTINGS["imbalanced_long_mlp"].options("random", 0, 1.5)
    assert beyond.steps(20_000) == round(1.5 * 0.75 * 3080)
    rated = dataclasses.replace(short, rates={"random": 0.3})
    assert rated.options("random", 0).optim.learning_rate == 0.3
    assert rated.options("crest", 0).optim.learning_rate == 0.1


@pytest.mark.slow
def test_the_map_compares_at_equal_steps_and_at_equal_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(equal_time, "SETTINGS", {"tiny": presets.Setting(RUN)})
    arguments = ["--settings", "tiny", "--seeds", "0", "1", "--full-seeds", "1", "--out", str(tmp_path)]
    equal_time.main(arguments)
    runs = read_lines(tmp_path / "summary.jsonl")
    at_budget = [run for run in runs if run["at"] == "budget"]
    again = [run for run in runs if run["at"] == "equal time"]
    assert len(at_budget) == 4 * 2 + 1
    assert sorted((run["method"], run["seed"]) for run in again) == [
        ("random", 0), ("random", 1), ("stratified", 0), ("stratified", 1),
    ]  # fmt: skip
    seconds = {
        method: np.median([run["training_seconds"] for run in at_budget if run["method"] == method])
        for method in ("crest", "stratified")
    }
    factor = round(seconds["crest"] / seconds["stratified"], 2)
    assert factor > 1
    assert {run["steps"] for run in again} == {round(0.5 * factor * 92)}
    leads = equal_time.gains(runs, "stratified", "equal time")
    own = {run["seed"]: run["test_accuracy"] for run in at_budget if run["method"] == "crest"}
    other = {run["seed"]: run["test_accuracy"] for run in again if run["method"] == "stratified"}
    np.testing.assert_allclose(leads, [100 * (own[seed] - other[seed]) for seed in (0, 1)])
    half = stats.t.ppf(0.975, 1) * np.std(leads, ddof=1) / np.sqrt(2)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert f"{np.mean(leads):+.2f} ± {half:.2f}" in text
    assert (tmp_path / "equal_time.png").stat().st_size > 10_000
    before = (tmp_path / "summary.jsonl").read_text(encoding="utf-8")
    capsys.readouterr()
    equal_time.main(arguments)
    assert (tmp_path / "summary.jsonl").read_text(encoding="utf-8") == before, "nothing is run again"
    equal_time.main(["--settings", "tiny", "--merge", str(tmp_path), "--out", str(tmp_path / "both")])
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"equal_time.png"}
    with pytest.raises(SystemExit, match=r"holds no summary\.jsonl"):
        equal_time.main(
            ["--settings", "tiny", "--merge", str(tmp_path / "both"), "--out", str(tmp_path / "both")]
        )

    # The check of the pilot reads these runs, and what pilots said.
    leads = pilot_check.measured((tmp_path,))
    assert list(leads) == ["tiny"]
    np.testing.assert_allclose(leads["tiny"], equal_time.gains(runs, "stratified", "equal time"))
    said = {
        "setting": "tiny", "gain_at_equal_time": 0.5, "gain_at_equal_time_error": 0.2, "steps": 46,
        "target": 46, "seeds": 2, "time_ratio": 2.0, "gain_at_equal_steps": 1.0,
        "gain_per_doubling": 0.5, "redundancy": {"learned": 0.1},
    }  # fmt: skip
    table = pilot_check.summarise([said, said | {"gain_at_equal_time": -0.5}], leads)
    assert "The sign is right in 1 of 2 settings" in table
    pilot_check.draw([said], leads, tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ("nowhere",)}, "names nowhere but must name some of short_resnet"),
        ({"methods": ("crest",)}, "crest and stratified must be among them"),
        ({"seeds": (1, 1)}, "must name at least one, each once"),
        ({"jobs": 0}, "--jobs is 0"),
    ],
)
def test_bad_maps_get_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        equal_time.EqualTimeConfig(**options)


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


@pytest.mark.slow
def test_every_ablation_changes_what_it_says_and_runs(tmp_path, monkeypatch, capsys):
    config = ablations.AblationConfig(out=tmp_path)
    plain = dataclasses.replace(ablations.options_of(config, "crest", 0), out=tmp_path)
    seen = {plain}
    for variant in list(ablations.VARIANTS)[1:]:
        own = dataclasses.replace(ablations.options_of(config, variant, 0), out=tmp_path)
        assert own not in seen, variant
        seen.add(own)
    assert ablations.options_of(config, "r_4m", 0).crest.subset_size == 4 * 130
    monkeypatch.setattr(ablations, "SETTINGS", {"imbalanced_mlp": presets.Setting(RUN)})
    variants = ["crest", "stratified", "no_exclusion", "last_layer", "sketch"]
    ablations.main(["--variants", *variants, "--seeds", "0", "1", "--out", str(tmp_path)])
    runs = read_lines(tmp_path / "summary.jsonl")
    assert [run["variant"] for run in runs] == 2 * variants
    lead = 100 * (runs[0]["test_accuracy"] - runs[1]["test_accuracy"])
    lead = (lead + 100 * (runs[6]["test_accuracy"] - runs[7]["test_accuracy"])) / 2
    assert f"{lead:+.2f} ± " in capsys.readouterr().out
    work = {run["variant"]: run["forward"]["selection"] for run in runs}
    assert work["sketch"] == work["last_layer"]
    with pytest.raises(UserError, match="must hold crest and stratified"):
        ablations.AblationConfig(variants=("crest",))
    with pytest.raises(UserError, match="--setting is nowhere"):
        ablations.AblationConfig(setting="nowhere")


@pytest.mark.slow
def test_the_equivalent_batch_of_a_larger_batch_is_its_size(tmp_path, monkeypatch, capsys):
    """Runs of twice the batch, named as a variant, must come out as two at the cost of two."""
    monkeypatch.setitem(equivalent.SETTINGS, "tiny", presets.Setting(RUN))
    arguments = ["--setting", "tiny", "--variants", "crest", "importance_2m", "paper"]
    arguments += ["--sizes", "1", "2", "--seeds", "0", "1", "--out", str(tmp_path / "runs")]
    equivalent.main(arguments)
    runs = read_lines(tmp_path / "runs" / "summary.jsonl")
    assert len({run["steps"] for run in runs}) == 1
    assert [run["variant"] for run in runs][:5] == ["1", "2", "crest", "importance_2m", "paper"]
    passed = {run["variant"]: run["forward"]["step"] for run in runs}
    assert passed["2"] == 2 * passed["1"] == 2 * passed["crest"]
    config = equivalent.EquivalentConfig(
        setting="tiny", sizes=(1, 2), variants=("crest",), seeds=(0, 1), out=tmp_path / "runs"
    )
    better = {"1": 0.80, "2": 0.84}
    plain = [
        dict(run, test_accuracy=better[run["variant"]]) for run in runs if run["variant"] in better
    ]
    own = [dict(run, variant="crest") for run in plain if run["variant"] == "2"]
    text = equivalent.summarise(config, plain + own)
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")]
    assert cells[6].startswith("2.00 [")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("accuracy", "size"),
    [(80.0, 1.0), (84.0, 2.0), (86.0, 4.0), (82.0, 2**0.5), (88.0, 8.0), (72.0, 0.25)],
)
def test_equivalent_batches_lie_on_the_line_of_the_sizes(accuracy, size):
    assert equivalent.equivalent(accuracy, (1, 2, 4), (80.0, 84.0, 86.0)) == pytest.approx(size)
    assert np.isnan(equivalent.equivalent(accuracy, (1, 2), (86.0, 85.0)))


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
