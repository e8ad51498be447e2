"""The pilot: its arithmetic, its trials, its clock, and the script."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init_mlp, mlp

from crest_jax import ArraySource, CrestConfig, cross_entropy, fit, pilot, weighted_mean
from crest_jax.pilot import Costs, advise, slope_at
from experiments import pilot as script
from experiments.config import UserError

CONFIG = CrestConfig(batch_size=16, subset_size=32, probe_size=32, exclude_window=10)
KEY = jax.random.key(0)


def make_source(count=512):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 4
    centres = 1.5 * rng.normal(size=(4, 4))
    return ArraySource(np.float32(centres[labels] + rng.normal(size=(count, 4))), labels, 4)


SOURCE, JUDGES = make_source(), make_source(64)


@jax.jit
def step(params, batch):
    def loss(params):
        logits, _ = mlp(params, {}, batch.inputs, train=False, rng=None)
        losses = cross_entropy(logits, batch.labels)
        return weighted_mean(losses, batch.weights), losses

    gradient, losses = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), losses


def evaluate(params, model_state):
    examples = JUDGES.take(jnp.arange(64))
    logits, _ = mlp(params, model_state, examples.inputs, train=False, rng=None)
    return float(jnp.mean(logits.argmax(1) == examples.labels))


class Trainer:
    """Trains a small network and remembers what was asked of it."""

    def __init__(self, pause=0.0):
        self.asked, self.pause = [], pause

    def __call__(self, selection, steps, key):
        self.asked.append((steps, np.asarray(jax.random.key_data(key)).tolist()))

        def slow(params, batch):
            time.sleep(self.pause)
            return step(params, batch)

        start = init_mlp(1, 4, 8, 4)
        return fit(
            selection, slow, start, key=key, steps=steps, view=lambda p: (p, {}), losses=lambda m: m
        ), {}


def test_the_value_of_a_doubling_falls_as_it_fell_before():
    assert slope_at(80.0, 84.0, 86.0, 1.0) == 2.0
    assert slope_at(80.0, 84.0, 86.0, 2.0) == 1.0
    assert slope_at(80.0, 84.0, 86.0, 8.0) == 0.25
    assert slope_at(80.0, 81.0, 86.0, 8.0) == 5.0, "it does not grow"
    assert slope_at(80.0, 84.0, 83.0, 8.0) == 0.0, "more steps do no harm"
    assert slope_at(80.0, 79.0, 81.0, 4.0) == 2.0


def test_the_advice_follows_the_costs():
    variance = {256: 0.4, 512: 0.25, 1024: 0.2}
    cheap = advise(CrestConfig(), Costs(1.0, 0.01, 0.1, 0.0), variance)
    assert (cheap.subset_size, cheap.max_interval, cheap.reuse) == (1024, 8, 1)
    dear = advise(CrestConfig(), Costs(1.0, 5.0, 5.0, 1.0), variance)
    assert (dear.subset_size, dear.max_interval, dear.max_coresets, dear.reuse) == (256, 60, 60, 2)


def test_a_pilot_runs_the_trials_it_says_and_adds_up():
    lines, train, own = [], Trainer(), Trainer()
    found = pilot(
        train, evaluate, mlp, SOURCE, steps=24, config=CONFIG, seconds=30.0, key=KEY,
        progress=lines.append, train_crest=own,
    )  # fmt: skip
    assert found.steps == found.target == 24
    assert found.seeds == 8
    assert [steps for steps, _ in train.asked] == [24, 24] + [12, 24, 48] * 8
    assert [steps for steps, _ in own.asked] == [24] * 9
    assert len({str(key) for _, key in train.asked[2:]}) == 8, "a key for each seed"
    assert len(lines) == 2 + 4 * 8
    np.testing.assert_allclose(found.lead, found.gain - found.slope * np.log2(found.ratio))
    assert found.pays == (found.lead > 0)
    assert 0 < found.variance[64] < found.variance[32] < 1
    assert 0 <= found.learned < 1
    assert 0 < found.covered < 1
    assert found.costs.step > 0
    assert found.costs.selection > 0
    assert found.costs.curvature > 0
    assert found.advice.batch_size == 16


def test_shorter_trials_where_steps_are_slow_and_the_ratio_counts_all_seconds():
    found = pilot(
        Trainer(0.004), evaluate, mlp, SOURCE, steps=4000, config=CONFIG, seconds=2.0,
        train_crest=Trainer(0.012),
    )  # fmt: skip
    assert found.steps < 60
    assert found.target == 4000
    assert found.seeds >= 2
    assert found.ratio > 1.8


def test_bad_questions_get_one_sentence():
    with pytest.raises(ValueError, match="steps is 4 but must be at least 16"):
        pilot(Trainer(), evaluate, mlp, SOURCE, steps=4, config=CONFIG)
    with pytest.raises(ValueError, match=r"seconds is -1\.0"):
        pilot(Trainer(), evaluate, mlp, SOURCE, steps=40, config=CONFIG, seconds=-1.0)

    def short(selection, steps, key):
        return Trainer()(selection, steps - 1, key)

    with pytest.raises(ValueError, match="took 39 batches but was asked for 40 steps"):
        pilot(short, evaluate, mlp, SOURCE, steps=40, config=CONFIG)
    with pytest.raises(UserError, match="--setting is nowhere but must be one of short_resnet"):
        script.PilotConfig(setting="nowhere")
    with pytest.raises(UserError, match=r"must end in .json"):
        script.PilotConfig(run=script.TrainConfig(out=script.Path("x")))


@pytest.mark.slow
def test_the_script_asks_about_real_data_without_its_test_rows(tmp_path, monkeypatch, capsys):
    out = tmp_path / "pilot.json"
    options = [
        "--dataset",
        "digits",
        "--model",
        "mlp",
        "--width",
        "16",
        "--epochs",
        "4",
        "--budget",
        "0.5",
    ]
    options += ["--batch-size", "64", "--subset-size", "128", "--probe-size", "64", "--seconds", "2"]
    monkeypatch.setattr("sys.argv", ["pilot", *options, "--out", str(out)])
    script.main()
    values = json.loads(out.read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert said.startswith("Yes" if values["pays"] else "No")
    assert f"{values['lead']:+.2f}" in said
    assert values["target"] == 46
    dataset = script.load_data("digits", None)
    train, judges = script.split(dataset, 0)
    assert len(train) + len(judges) == len(dataset.train_labels)
    assert len(judges) == len(dataset.train_labels) // 10
