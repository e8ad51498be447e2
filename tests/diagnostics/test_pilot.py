"""The pilot: its arithmetic, its trials, its clock, and the script."""

import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import init_mlp, mlp
from small_settings import changed, fresh_settings, settings

from crest_jax import ArraySource, cross_entropy, fit
from crest_jax.diagnostics import Pilot, pilot
from crest_jax.diagnostics.trials import Costs, _Clock, advise, gain_per_doubling
from crest_jax.gradients import weighted_mean
from experiments import pilot as script
from experiments.harness.cli import UserError
from experiments.harness.options import DataConfig
from experiments.studies import pilot_check

OWN = settings(batch_size=16, subset_size=32, probe_size=32, exclusion={"window": 10})


def config_of(steps):
    """The settings for trials of so many steps."""
    low, high = round(0.35 * steps), round(0.5 * steps)
    return changed(OWN, select_from=low, select_until=max(high, low + 1), reference_step=low)


KEY = jax.random.key(0)


def make_source(count=512):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 4
    centres = 1.5 * rng.normal(size=(4, 4))
    return ArraySource(np.float32(centres[labels] + rng.normal(size=(count, 4))), labels)


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
    assert gain_per_doubling(80.0, 84.0, 86.0, 1.0) == 2.0
    assert gain_per_doubling(80.0, 84.0, 86.0, 2.0) == 1.0
    assert gain_per_doubling(80.0, 84.0, 86.0, 8.0) == 0.25
    assert gain_per_doubling(80.0, 81.0, 86.0, 8.0) == 5.0, "it does not grow"
    assert gain_per_doubling(80.0, 84.0, 83.0, 8.0) == 0.0, "more steps do no harm"
    assert gain_per_doubling(80.0, 79.0, 81.0, 4.0) == 2.0


def test_the_advice_follows_the_costs():
    variance = {256: 0.4, 512: 0.25, 1024: 0.2}
    cheap = advise(settings(), Costs(1.0, 0.01, 0.1, 0.0), variance)
    assert (cheap.subset_size, cheap.region.max_interval) == (1024, 8)
    dear = advise(settings(), Costs(1.0, 5.0, 5.0, 1.0), variance)
    region = dear.region
    assert (dear.subset_size, region.max_interval, region.max_coresets) == (256, 60, 60)
    fresh = advise(fresh_settings(), Costs(1.0, 5.0, 0.0, 0.0), variance)
    assert (fresh.subset_size, fresh.region) == (256, None)


@pytest.mark.slow
def test_a_pilot_runs_the_trials_it_says_and_adds_up():
    lines, train, own = [], Trainer(), Trainer()
    found = pilot(
        train, evaluate, mlp, SOURCE, steps=24, config=config_of, seconds=30.0, key=KEY,
        progress=lines.append, train_crest=own,
    )  # fmt: skip
    assert found.steps == found.target == 24
    assert found.seeds == 8
    assert [steps for steps, _ in train.asked] == [24, 24] + [12, 24, 48] * 8
    assert [steps for steps, _ in own.asked] == [24] * 9
    assert len({str(key) for _, key in train.asked[2:]}) == 8, "a key for each seed"
    assert len(lines) == 2 + 4 * 8
    lost = found.gain_per_doubling * np.log2(found.time_ratio)
    np.testing.assert_allclose(found.gain_at_equal_time, found.gain_at_equal_steps - lost)
    assert found.pays == (found.gain_at_equal_time > 0)
    assert 0 < found.redundancy.variance[64] < found.redundancy.variance[32] < 1
    assert 0 <= found.redundancy.learned < 1
    assert 0 < found.redundancy.covered < 1
    assert found.costs.step > 0
    assert found.costs.selection > 0
    assert found.costs.curvature > 0
    assert found.advice.batch_size == 16


@pytest.mark.slow
def test_shorter_trials_where_steps_are_slow_and_the_ratio_counts_all_seconds():
    found = pilot(
        Trainer(0.004), evaluate, mlp, SOURCE, steps=4000, config=config_of, seconds=2.0,
        train_crest=Trainer(0.012),
    )  # fmt: skip
    assert found.steps < 60
    assert found.target == 4000
    assert found.seeds >= 2
    assert found.time_ratio > 1.8


def compile_for(seconds):
    """Let seconds go by, and tell JAX's listeners that they went into a compilation."""
    time.sleep(seconds)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", seconds)


@pytest.mark.slow
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

    found = pilot(train, evaluate, mlp, SOURCE, steps=40, config=config_of, seconds=0.5)
    assert found.steps == 40, "0.4 seconds of compilation would leave room for 16"
    assert found.costs.step < 0.4 / 40 / 2

    clock = _Clock()
    clock.phase("selection", lambda: (compile_for(0.2), time.sleep(0.02)))
    assert 0.02 <= clock.phases["selection"][0] < 0.15


@pytest.mark.slow
def test_a_step_that_is_compiled_in_every_trial_takes_no_longer_than_one_compiled_before():
    def train(selection, steps, key):
        own_step = jax.jit(lambda params, batch: plain_step(params, batch))  # unknown to any cache
        start = init_mlp(1, 4, 8, 4)
        return fit(selection, own_step, start, key=key, steps=steps, view=lambda p: (p, {})), {}

    inside = pilot(train, evaluate, mlp, SOURCE, steps=200, config=config_of, seconds=2.0)
    outside = pilot(Trainer(), evaluate, mlp, SOURCE, steps=200, config=config_of, seconds=2.0)
    assert inside.steps > outside.steps / 4, "counted, compilation leaves room for a tenth"
    assert inside.costs.step < 4 * outside.costs.step


@pytest.mark.parametrize(
    "value",
    [
        83.2, -0.1, float("nan"), float("inf"), True, np.True_, "0.8", None, [0.8],
        np.array([0.8]), np.array([0.1, 0.9]), jnp.array(True), {"accuracy": 0.8}, 0.8 + 0j,
    ],
)  # fmt: skip
def test_what_is_no_accuracy_is_refused_before_the_long_trials(value):
    train = Trainer()
    with pytest.raises(ValueError, match=r"evaluate returned .* but must return one accuracy"):
        pilot(train, lambda *_: value, mlp, SOURCE, steps=400, config=config_of)
    assert [steps for steps, _ in train.asked] == [64]


@pytest.mark.parametrize(
    "value", [0.75, 1, np.float32(0.75), np.array(0.75), jnp.array(0.75), jnp.bfloat16(0.75)]
)
def test_one_number_of_any_kind_is_an_accuracy(value):
    found = pilot(Trainer(), lambda *_: value, mlp, SOURCE, steps=16, config=config_of, seconds=0.1)
    assert found.gain_at_equal_steps == 0.0


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
        ({"key": 0}, "key is 0 but must be one PRNG key"),
        ({"key": "seed"}, "key is 'seed' but must be one PRNG key"),
    ],
)
def test_bad_questions_get_one_sentence_before_any_work(options, message):
    train = Trainer()
    with pytest.raises(ValueError, match=message) as found:
        pilot(train, evaluate, mlp, SOURCE, **{"steps": 40, "config": config_of, **options})
    assert train.asked == []
    assert len(str(found.value)) < 300


@pytest.mark.slow
def test_keys_of_both_forms_ask_the_same():
    asked = []
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        train = Trainer()
        pilot(train, evaluate, mlp, SOURCE, steps=16, config=config_of, seconds=0.1, key=key)
        asked.append({str(key) for _, key in train.asked[:6]})
    assert asked[0] == asked[1]


@pytest.mark.parametrize("kind", [Pilot, Costs])
def test_help_gives_every_field_its_unit(kind):
    text = " ".join(kind.__doc__.split())
    units = ("steps", "number", "seconds", "point", "variance", "settings")
    for name, after in zip(kind._fields, [*kind._fields[1:], None], strict=True):
        start = text.index(f" {name}: ")
        line = text[start + len(name) + 2 : text.index(f" {after}: ") if after else None]
        assert any(unit in line for unit in units), name


def test_what_train_does_wrong_gets_one_sentence():
    def short(selection, steps, key):
        return Trainer()(selection, steps - 1, key)

    with pytest.raises(ValueError, match="took 39 batches but was asked for 40 steps"):
        pilot(short, evaluate, mlp, SOURCE, steps=40, config=config_of)

    def alone(selection, steps, key):
        return {"params": Trainer()(selection, steps, key)[0], "batch_stats": {}}

    with pytest.raises(ValueError, match=r"train returned .* but must return \(params, model_state\)"):
        pilot(alone, evaluate, mlp, SOURCE, steps=40, config=config_of)


def test_the_script_refuses_what_cannot_work():
    with pytest.raises(UserError, match=r"--machine.devices has no effect here"):
        script.PilotConfig(
            run=script.TrainConfig(out=script.Path("x.json"), machine=script.MachineConfig(devices=2))
        )
    with pytest.raises(UserError, match=r"must end in .json"):
        script.PilotConfig(run=script.TrainConfig(out=script.Path("x")))
    for seconds in (-1.0, float("nan"), float("inf")):
        for kind in (script.PilotConfig, functools.partial(pilot_check.CheckConfig, runs=())):
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
        "--network.width",
        "16",
        "--epochs",
        "4",
        "--budget",
        "0.5",
    ]
    options += ["--batch-size", "64", "--crest.probe-size", "64", "--seconds", "2"]
    monkeypatch.setattr("sys.argv", ["pilot", *options, "--out", str(out)])
    script.main()
    values = json.loads(out.read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert said.startswith("Yes" if values["pays"] else "No")
    assert f"{values['gain_at_equal_time']:+.2f}" in said
    assert values["target"] == 46
    dataset = script.load_data("digits", DataConfig())
    train, judges = script.split(dataset, 0)
    assert len(train) + len(judges) == len(dataset.train_labels)
    assert len(judges) == len(dataset.train_labels) // 10
