"""The pilot: its arithmetic, its trials, its clock, and the script."""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init_mlp, mlp

from crest_jax import (
    ArraySource,
    CrestConfig,
    Evaluation,
    Pilot,
    cross_entropy,
    fit,
    pilot,
    weighted_mean,
)
from crest_jax.pilot import Costs, _Clock, advise, slope_at
from experiments import check_pilot
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


def plain_step(params, batch):
    def loss(params):
        logits, _ = mlp(params, {}, batch.inputs, train=False, rng=None)
        losses = cross_entropy(logits, batch.labels)
        return weighted_mean(losses, batch.weights), losses

    gradient, losses = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), losses


step = jax.jit(plain_step)


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


def compile_for(seconds):
    """Let seconds go by, and tell JAX's listeners that they went into a compilation."""
    time.sleep(seconds)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds)


def test_neither_trials_nor_phases_count_compilation():
    def train(selection, steps, key):
        asked = 0

        def own_step(params, batch):
            nonlocal asked
            asked += 1
            if asked == 2:
                compile_for(0.4)
            return step(params, batch)

        start = init_mlp(1, 4, 8, 4)
        return fit(selection, own_step, start, key=key, steps=steps, view=lambda p: (p, {})), {}

    found = pilot(train, evaluate, mlp, SOURCE, steps=40, config=CONFIG, seconds=0.5)
    assert found.steps == 40, "0.4 seconds of compilation would leave room for 16"
    assert found.costs.step < 0.4 / 40 / 2

    clock = _Clock()
    clock.phase("selection", lambda: (compile_for(0.2), time.sleep(0.02)))
    assert 0.02 <= clock.phases["selection"][0] < 0.15


def test_a_step_that_is_compiled_in_every_trial_takes_no_longer_than_one_compiled_before():
    def train(selection, steps, key):
        own_step = jax.jit(lambda params, batch: plain_step(params, batch))  # unknown to any cache
        start = init_mlp(1, 4, 8, 4)
        return fit(selection, own_step, start, key=key, steps=steps, view=lambda p: (p, {})), {}

    inside = pilot(train, evaluate, mlp, SOURCE, steps=200, config=CONFIG, seconds=2.0)
    outside = pilot(Trainer(), evaluate, mlp, SOURCE, steps=200, config=CONFIG, seconds=2.0)
    assert inside.steps > outside.steps / 4, "counted, compilation leaves room for a tenth"
    assert inside.costs.step < 4 * outside.costs.step


@pytest.mark.parametrize(
    "value",
    [
        83.2, -0.1, float("nan"), float("inf"), True, np.True_, "0.8", None, [0.8],
        np.array([0.8]), np.array([0.1, 0.9]), jnp.array(True), Evaluation(0.3, 0.8), 0.8 + 0j,
    ],
)  # fmt: skip
def test_what_is_no_accuracy_is_refused_before_the_long_trials(value):
    train = Trainer()
    with pytest.raises(ValueError, match=r"evaluate returned .* but must return one accuracy"):
        pilot(train, lambda *_: value, mlp, SOURCE, steps=400, config=CONFIG)
    assert [steps for steps, _ in train.asked] == [64]


@pytest.mark.parametrize(
    "value", [0.75, 1, np.float32(0.75), np.array(0.75), jnp.array(0.75), jnp.bfloat16(0.75)]
)
def test_one_number_of_any_kind_is_an_accuracy(value):
    found = pilot(Trainer(), lambda *_: value, mlp, SOURCE, steps=16, config=CONFIG, seconds=0.1)
    assert found.gain == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4}, "steps is 4 but must be at least 16"),
        ({"steps": 40.0}, r"steps is 40\.0 but must be an integer"),
        ({"steps": "40"}, "steps is '40' but must be an integer"),
        ({"seconds": -1.0}, r"seconds is -1\.0 but must be a number in"),
        ({"seconds": float("nan")}, "seconds is nan but must be a number in"),
        ({"seconds": "120"}, "seconds is '120' but must be a number in"),
        ({"seconds": None}, "seconds is None but must be a number in"),
        ({"select_span": 0.5}, r"select_span is 0\.5 but must be two rising shares"),
        ({"select_span": (0.5, 0.35)}, "select_span is .* but must be two rising shares"),
        ({"select_span": (0.1, 1.5)}, "select_span is .* but must be two rising shares"),
        ({"select_span": (0.1, float("nan"))}, "select_span is .* but must be two rising shares"),
        ({"select_span": (0.1, 0.2, 0.3)}, "select_span is .* but must be two rising shares"),
        ({"select_span": ("a", "b")}, "select_span is .* but must be two rising shares"),
        ({"key": 0}, "key is 0 but must be one PRNG key"),
        ({"key": "seed"}, "key is 'seed' but must be one PRNG key"),
    ],
)
def test_bad_questions_get_one_sentence_before_any_work(options, message):
    train = Trainer()
    with pytest.raises(ValueError, match=message) as found:
        pilot(train, evaluate, mlp, SOURCE, **{"steps": 40, "config": CONFIG, **options})
    assert train.asked == []
    assert len(str(found.value)) < 300


def test_keys_of_both_forms_ask_the_same():
    asked = []
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        train = Trainer()
        pilot(train, evaluate, mlp, SOURCE, steps=16, config=CONFIG, seconds=0.1, key=key)
        asked.append({str(key) for _, key in train.asked[:6]})
    assert asked[0] == asked[1]


@pytest.mark.parametrize("kind", [Pilot, Costs])
def test_help_gives_every_field_its_unit(kind):
    text = " ".join(kind.__doc__.split())
    units = ("steps", "number", "seconds", "point", "ratio", "share", "settings")
    for name, after in zip(kind._fields, [*kind._fields[1:], None], strict=True):
        start = text.index(f" {name}: ")
        line = text[start + len(name) + 2 : text.index(f" {after}: ") if after else None]
        assert any(unit in line for unit in units), name


def test_what_train_does_wrong_gets_one_sentence():
    def short(selection, steps, key):
        return Trainer()(selection, steps - 1, key)

    with pytest.raises(ValueError, match="took 39 batches but was asked for 40 steps"):
        pilot(short, evaluate, mlp, SOURCE, steps=40, config=CONFIG)

    def alone(selection, steps, key):
        return {"params": Trainer()(selection, steps, key)[0], "batch_stats": {}}

    with pytest.raises(ValueError, match=r"train returned .* but must return \(params, model_state\)"):
        pilot(alone, evaluate, mlp, SOURCE, steps=40, config=CONFIG)


def test_the_script_refuses_what_cannot_work():
    with pytest.raises(UserError, match="--setting is nowhere but must be one of short_resnet"):
        script.PilotConfig(setting="nowhere")
    with pytest.raises(UserError, match=r"must end in .json"):
        script.PilotConfig(run=script.TrainConfig(out=script.Path("x")))
    for seconds in (-1.0, float("nan"), float("inf")):
        for kind in (script.PilotConfig, functools.partial(check_pilot.CheckConfig, runs=())):
            with pytest.raises(UserError, match=r"--seconds is .* but must lie in"):
                kind(seconds=seconds)
        with pytest.raises(UserError, match=r"--crest-rate is .* but must be finite and above 0"):
            script.PilotConfig(crest_rate=seconds)


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
