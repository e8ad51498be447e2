"""The pilot: its estimates against exact errors, its clock, its questions, and the script."""

import dataclasses
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_settings import fresh_settings, settings

from crest_jax import ArraySource, Batch, BatchSelector, crest, cross_entropy, random_batches
from crest_jax.diagnostics import GradientErrors, Pilot, measure_errors, measure_evenness, pilot
from crest_jax.diagnostics.answer import MODEL_ERROR
from crest_jax.diagnostics.worth import _judged
from experiments import pilot as script
from experiments.config import TrainConfig
from experiments.harness.cli import UserError
from experiments.harness.options import MachineConfig, NetworkConfig
from experiments.studies import pilot_check

COUNT, SIZE, STEPS, WIDTH = 400, 4, 300, 64
RNG = np.random.default_rng(0)
VALUES = np.float32(RNG.normal(0.2, 1.0, (COUNT, WIDTH)))
SOURCE = ArraySource(VALUES, np.zeros(COUNT, int))
FIXED = {"view": lambda w: (w, {}), "key": jax.random.key(0)}


def mean_gradient(w, batch, key):
    """The gradient of the mean of ``|x - w|^2 / 2``."""
    return w - jnp.average(batch.inputs, axis=0, weights=batch.weights)


def stand(w, batch):
    return w, None


def shifted(selector, by, scale):
    """A way of choosing whose mini-batches are nearer to the mean, all shifted by the same."""
    centre = VALUES.mean(axis=0)

    def next_batch(state):
        state, batch = selector.next_batch(state)
        inputs = (centre + by)[None] + scale * (batch.inputs - centre[None])
        return state, Batch(inputs, batch.labels, batch.weights, batch.indices)

    return BatchSelector(selector.init, selector.refresh, next_batch, selector.observe, None)


def test_errors_are_those_of_the_exact_gradient_without_computing_it():
    plain, w = random_batches(SOURCE, SIZE), jnp.ones(WIDTH)
    shift, scale = np.float32(RNG.normal(0.0, 0.1, WIDTH)), 0.5
    _, found = measure_errors(
        mean_gradient, stand, w, plain, shifted(plain, shift, scale), steps=STEPS, **FIXED
    )
    variance = VALUES.var(axis=0, ddof=1).sum() / SIZE * (1 - SIZE / COUNT)
    signal = np.square(np.asarray(w) - VALUES.mean(axis=0)).sum()
    wanted = {
        "variance": variance,
        "error": scale**2 * variance + np.square(shift).sum(),
        "bias": np.square(shift).sum(),
        "signal": signal,
    }
    for name, value in wanted.items():
        own = getattr(found, name)
        error = own.std() / np.sqrt(STEPS)
        assert abs(own.mean() - value) < 4 * error, name
        assert error < 0.15 * variance
    own = found.equivalent_batch()
    lasting = scale**2 * variance + 19 * np.square(shift).sum()
    assert own == pytest.approx(variance / lasting, rel=0.2)
    low, high = np.quantile([x.equivalent_batch() for x in found.resampled(200)], [0.01, 0.99])
    assert low < variance / lasting < high


def test_a_stratified_batch_of_twice_the_size_is_worth_two():
    plain, double = random_batches(SOURCE, SIZE), random_batches(SOURCE, 2 * SIZE)
    _, found = measure_errors(
        mean_gradient, stand, jnp.zeros(WIDTH), plain, double, steps=STEPS, **FIXED
    )
    low, high = np.quantile([x.equivalent_batch() for x in found.resampled(200)], [0.005, 0.995])
    assert low < 2 < high
    assert high - low < 1


def test_gradients_are_compared_where_the_steps_are():
    seen = []

    def refresh(state, params, model_state):
        seen.append(float(params[0]))
        return state, None

    plain = random_batches(SOURCE, SIZE)
    own = BatchSelector(plain.init, refresh, plain.next_batch, plain.observe, None)
    moved, _ = measure_errors(
        mean_gradient, lambda w, batch: (w + 1, None), jnp.zeros(WIDTH), plain, own, steps=3, **FIXED
    )
    assert seen == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert moved.tolist() == [3.0] * WIDTH


def make_source(count=512):
    labels = np.arange(count) % 4
    centres = 1.5 * RNG.normal(size=(4, 4))
    return ArraySource(np.float32(centres[labels] + RNG.normal(size=(count, 4))), labels)


LABELLED = make_source()
CONFIG = fresh_settings(batch_size=16, subset_size=64, exclusion=None)


def linear(params, state, inputs, *, train, rng):
    return inputs @ params, state


@jax.jit
def step(w, batch):
    def loss(w):
        return jnp.average(cross_entropy(batch.inputs @ w, batch.labels), weights=batch.weights)

    return w - 0.1 * jax.grad(loss)(w), None


def ask(**options):
    given = {"steps": 400, "config": CONFIG, "view": lambda w: (w, {}), "seconds": 4.0}
    return pilot(step, jnp.zeros((4, 4)), linear, LABELLED, **(given | options))


@pytest.mark.slow
def test_draws_have_hardly_a_bias_where_the_gradient_is_long_beside_the_noise():
    """Near the start of a training; later 200 comparisons cannot tell half a gradient from none."""

    def still(w, batch):
        after, _ = step(w, batch)
        return w + 0.01 * (after - w), None

    options = {"steps": 400, "config": CONFIG, "view": lambda w: (w, {}), "seconds": 4.0}
    found = pilot(jax.jit(still), jnp.zeros((4, 4)), linear, LABELLED, **options)
    assert found.compared >= 100
    assert found.noise < 0.5
    assert found.bias < 0.2


@pytest.mark.slow
def test_a_pilot_finds_what_coresets_are_worth_and_adds_up():
    lines = []
    found = ask(progress=lines.append)
    assert (found.steps, found.trained <= 400, 32 <= found.compared <= 200) == (400, True, True)
    assert 1.5 < found.equivalent_batch < 4, "by length out of four mini-batches"
    low, high = found.equivalent_batch_interval
    assert low < found.equivalent_batch < high
    assert found.time_ratio > 1
    assert found.worth == found.equivalent_batch / found.larger_batch
    ends = found.worth_interval
    assert ends[0] < low / found.larger_batch < found.worth < high / found.larger_batch < ends[1]
    assert found.passes == pytest.approx(found.steps * 16 / 512)
    assert found.effective_passes == pytest.approx(found.passes / np.mean(found.evenness))
    assert found.pays == (found.worth > 1 and found.effective_passes <= 20)
    assert found.noise > 0
    # Draws have hardly a bias: its square is 0 within three standard errors, which are at most these.
    spread = found.noise * (1 + 1 / found.equivalent_batch) / found.compared**0.5
    assert found.bias**2 < 3 * spread < found.noise / found.equivalent_batch, "less than the error"
    assert len(lines) == 6
    half = CONFIG.__class__.recommended(steps=400, first_drop=100, batch_size=16)
    assert ask(config=half).time_ratio < found.time_ratio, "coresets in a quarter of the steps"


@pytest.mark.slow
def test_what_steps_take_is_timed_without_compilation(monkeypatch):
    slow = {16: 0.01, 32: 0.02}

    def own(w, batch):
        time.sleep(slow[len(batch.labels)] * (1 + bool(jnp.any(batch.weights != 1.0))))
        return step(w, batch)

    found = pilot(
        own, jnp.zeros((4, 4)), linear, LABELLED, steps=100, config=CONFIG, seconds=2.0,
        view=lambda w: (w, {}),
    )  # fmt: skip
    assert 1.9 < found.time_ratio < 3.5, "steps on weighted batches sleep twice as long"
    assert 1.7 < found.larger_batch < 4


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
        (
            {"config": fresh_settings(batch_size=300)},
            "hold 512 examples but must hold two mini-batches",
        ),
    ],
)
def test_bad_questions_get_one_sentence_before_any_work(options, message):
    def never(w, batch):
        raise AssertionError

    with pytest.raises(ValueError, match=message) as found:
        pilot(
            never, jnp.zeros((4, 4)), linear, LABELLED,
            **{"steps": 40, "config": CONFIG, "view": lambda w: (w, {})} | options,
        )  # fmt: skip
    assert len(str(found.value)) < 300


@pytest.mark.parametrize("kind", [Pilot, GradientErrors])
def test_help_says_what_every_field_is(kind):
    for name in kind._fields:
        assert f"\n      {name}: " in kind.__doc__, name


def test_judgement_weighs_points_alike_and_time_by_batches_of_twice_the_size():
    one = GradientErrors(*[np.full(5, x) for x in (1.0, 0.25, 0.0, 2.0)])
    other = one._replace(error=np.ones(5), bias=np.full(5, 0.5))
    assert one.equivalent_batch() == 4
    assert other.equivalent_batch() == 1 / (1 + 18 * 0.5)
    found = _judged([one, one._replace(error=np.ones(5))], [0.3, 0.4], 0.75, 100, 50, 1.6, 1.8, 1, 100)
    assert found.equivalent_batch == pytest.approx(2.0)
    assert found.equivalent_batch_interval == pytest.approx((2.0, 2.0))
    assert found.larger_batch == pytest.approx(1.75)
    # Nothing is open about the draws, so the interval is what full runs scatter about predictions.
    scatter = np.exp(1.96 * 0.3)
    assert found.worth_interval == pytest.approx((2 / 1.75 / scatter, 2 / 1.75 * scatter))
    wide = found._replace(equivalent_batch_interval=(2 / 1.5, 2.0 * 2.0)).worth_interval
    assert np.log(wide[1] / found.worth) == pytest.approx(np.hypot(np.log(2), 1.96 * 0.3))
    assert np.log(found.worth / wide[0]) == pytest.approx(np.hypot(np.log(1.5), 1.96 * 0.3))
    assert (found.noise, found.bias, found.paused) == (0.5, 0.0, 0.0)
    few, many = found._replace(passes=6.9), found._replace(passes=7.1)
    assert (few.effective_passes, few.pays) == (pytest.approx(6.9 / 0.35), True)
    assert (many.effective_passes, many.pays) == (pytest.approx(7.1 / 0.35), False)
    assert str(few).startswith("Too close to call: ")
    assert str(many).startswith("Probably no: ")
    said = str(many)
    assert "makes 7.1 passes over the data, 20 over the examples" in said
    assert "CREST seldom beats a larger batch that takes as long: take stratified" in said
    assert "take stratified mini-batches, of 1 or larger." in said


def test_a_coreset_is_worth_no_more_than_all_data():
    exact = GradientErrors(*(np.full(5, x) for x in (1.0, 0.0, 0.0, 2.0)))
    found = _judged([exact, exact], [0.1, 0.1], 0.75, 100, 50, 1.6, 1.8, 1, 5)  # 5 mini-batches
    assert found.equivalent_batch == pytest.approx(5.0)
    assert found.equivalent_batch_interval == pytest.approx((5.0, 5.0))
    still = exact._replace(variance=np.zeros(5))
    assert not _judged([still, still], [0.1, 0.1], 0.75, 100, 50, 1.6, 1.8, 1, 5).pays


def test_where_crest_pauses_it_is_worth_a_stratified_batch_and_takes_as_long():
    found = GradientErrors(*(np.full(5, x) for x in (1.0, 0.25, 0.0, 2.0)))
    half = _judged([found, found], [0.5, 0.9], 0.75, 100, 50, 1.6, 1.8, 1, 100)
    assert (half.evenness, half.paused) == ((0.5, 0.9), 0.5)
    assert half.equivalent_batch == pytest.approx(2.0)  # the mean of 4 and 1, by logarithms
    assert half.time_ratio == pytest.approx(1.3)
    none = _judged([found, found], [0.8, 0.9], 0.75, 100, 50, 1.6, 1.8, 1, 100)
    assert (none.equivalent_batch, none.time_ratio, none.worth) == (1.0, 1.0, 1.0)
    assert none.worth_interval == (1.0, 1.0)
    said = str(none)
    assert said.startswith("No: ")
    assert "At all points gradients are so equally long (evenness 0.80, 0.90, of at most 1)" in said
    assert "CREST pauses: it takes stratified mini-batches" in said


def test_evenness_is_measured_at_every_point_though_the_measured_coresets_never_pause():
    options = {"view": lambda w: (w, {}), "steps": 64, "seconds": 0.1}
    config = dataclasses.replace(CONFIG, pause_above=0.01)
    found = pilot(step, jnp.zeros((4, 4)), linear, LABELLED, config=config, **options)
    assert all(0.01 < value <= 1 for value in found.evenness)
    assert (found.paused, found.time_ratio) == (1.0, 1.0)


def test_a_step_that_changes_its_state_is_refused():
    def in_place(state, batch):
        state["w"], _ = step(state["w"], batch)
        return state, None

    def given_away(w, batch):
        after, _ = step(w, batch)
        w.delete()
        return after, None

    options = {"steps": 400, "config": CONFIG, "seconds": 0.1}
    with pytest.raises(ValueError, match="train_step changes the train_state that it is given"):
        pilot(
            in_place, {"w": jnp.zeros((4, 4))}, linear, LABELLED, view=lambda s: (s["w"], {}), **options
        )
    with pytest.raises((ValueError, RuntimeError), match=r"train_step changes|deleted"):
        pilot(
            given_away, jnp.zeros((4, 4)), linear, LABELLED, view=lambda w: (w, {}), **options
        )  # fmt: skip


def test_a_state_without_params_is_named_with_the_remedy():
    with pytest.raises(TypeError, match=r"train_state is a tuple without params; pass view="):
        pilot(step, (jnp.zeros((4, 4)), {}), linear, LABELLED, steps=400)


@pytest.mark.parametrize(("model_state", "picks"), [({}, "importance"), ({"mean": 0.0}, "medoids")])
def test_a_model_with_a_state_is_taken_to_have_batch_norm(model_state, picks, monkeypatch):
    asked = []

    def noting(apply_fn, source, config, **options):
        asked.append(config)
        raise StopIteration

    monkeypatch.setattr("crest_jax.diagnostics.worth.crest", noting)
    with pytest.raises(StopIteration):
        ask(config=None, view=lambda w: (w, model_state))
    assert [config.picks for config in asked] == [picks]


@pytest.mark.parametrize("topic", [(), ("data",), ("machine",), ("crest",), ("all",)])
def test_the_help_of_the_script_leaves_out_what_it_refuses(monkeypatch, capsys, topic):
    monkeypatch.setattr("sys.argv", ["pilot", "--help", *topic])
    with pytest.raises(SystemExit):
        script.main()
    said = capsys.readouterr().out
    assert not re.search(r"--(method|resume|run\b|baselines|machine\.scan|data\.evaluate-on)", said)
    assert "--crest.embedding" not in said
    known = {"data": "data.dir", "machine": "machine.compilation-cache", "crest": "crest.region.tau"}
    for name in known.values() if topic == ("all",) else [known.get(*topic) if topic else "epochs"]:
        assert f"--{name}" in said


def test_the_script_refuses_what_cannot_work():
    with pytest.raises(UserError, match=r"--machine.devices has no effect here"):
        script.PilotConfig(run=TrainConfig(out=script.Path("x.json"), machine=MachineConfig(devices=2)))
    with pytest.raises(UserError, match=r"must end in .json"):
        script.PilotConfig(run=TrainConfig(out=script.Path("x")))
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"--seconds is .* but must lie in"):
            script.PilotConfig(seconds=seconds)
        with pytest.raises(UserError, match=r"--seconds is .* but must lie in"):
            pilot_check.CheckConfig(runs=(), seconds=seconds)


@pytest.mark.parametrize(
    ("worth", "spread", "answer"),
    [
        (1.5, 1.2, "Yes:"), (1.5, 1.8, "Probably yes:"), (1.1, 1.8, "Too close to call:"),
        (0.9, 1.8, "Too close to call:"), (0.6, 1.8, "Probably no:"), (0.5, 1.2, "No:"),
    ],
)  # fmt: skip
def test_an_answer_is_as_sure_as_its_interval(worth, spread, answer):
    half = np.sqrt(np.log(spread) ** 2 - (1.96 * MODEL_ERROR * 0.5) ** 2) if spread > 1.5 else 0.01
    pauses = 0.5 if spread > 1.5 else 1 - np.log(spread) / (1.96 * MODEL_ERROR)
    ends = (worth * np.exp(-half), worth * np.exp(half))
    found = Pilot(99, 50, 32, worth, ends, 1.0, 1.0, 2.0, 0.0, (0.4, 0.4), pauses, 1.0, 8)
    assert found.worth_interval == pytest.approx((worth / spread, worth * spread), rel=0.01)
    assert str(found).startswith(answer)
    larger = found._replace(larger_batch=worth / 0.4)
    assert "Cost: the training takes 1.00 times as long, as it does on stratified" in str(larger)
    assert "Take 99 steps on stratified mini-batches of about" in str(larger)
    most = larger._replace(larger_batch=40.0, passes=5.0)  # 158 rows
    assert "Take 99 steps on all data at once, or about 99 on ones of 8, at the same rate." in str(most)


def test_steps_are_asked_about_once(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pilot", "--dataset", "digits", "--steps", "46", "--epochs", "4"])
    with pytest.raises(SystemExit, match="--steps is 46 but --epochs or --budget are given too; leave"):
        script.main()
    with pytest.raises(UserError, match="--steps is 3 but must be at least 16; ask about more"):
        script.PilotConfig(steps=3)


@pytest.mark.parametrize("size", [1.37, 2.6, 9.0])
def test_the_options_of_larger_batches_are_of_as_many_steps(size):
    run = TrainConfig(method="stratified", epochs=7, budget=0.3, batch_size=64)
    steps = run.steps(10_000)
    found = Pilot(steps, steps, 2, 2.0, (1.5, 2.5), size, size, 2.0, 0.0, (0.4,), 0.0, 1.0, 64)
    said = script.asked(run, found, 10_000)
    given = dict(re.findall(r"--(batch-size|epochs|budget) ([\d.]+\d|\d)", said))
    again = TrainConfig(
        method="stratified", epochs=int(given["epochs"]), budget=float(given["budget"]),
        batch_size=int(given["batch-size"]),
    )  # fmt: skip
    assert (again.batch_size, again.steps(10_000)) == (round(64 * size), steps)
    assert "--batch-size" not in script.asked(run, found._replace(larger_batch=160.0), 10_000)


@pytest.mark.slow
def test_the_script_asks_about_real_data(tmp_path, monkeypatch, capsys):
    out = tmp_path / "pilot.json"
    options = ["--dataset", "digits", "--model", "mlp", "--network.width", "16", "--steps", "46"]
    options += ["--batch-size", "64", "--seconds", "2"]
    monkeypatch.setattr("sys.argv", ["pilot", *options, "--out", str(out)])
    script.main()
    values = json.loads(out.read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    low, high = values["worth_interval"]
    answer = "yes" if values["pays"] else "no"
    sure = (f"Probably {answer}:", "Too close to call:") if low < 1 < high else f"{answer.title()}:"
    assert said.startswith(sure)
    assert f"{values['worth']:.2f}" in said
    assert values["steps"] == 46
    assert values["run"]["network"]["width"] == NetworkConfig(width=16).width


def test_the_check_counts_right_sides_and_intervals_that_cover(tmp_path):
    def run(variant, seed, accuracy, seconds):
        return {
            "variant": variant, "seed": seed, "curve": [{"accuracy": accuracy}], "steps": 10,
            "training_seconds": seconds, "forward": {"step": 640}, "backward": {"step": 640},
        }  # fmt: skip

    runs = []
    for seed in range(4):
        noise = 0.0005 * (seed % 2)
        runs += [
            run("1", seed, 0.80, 10.0), run("2", seed, 0.84, 20.0), run("4", seed, 0.86, 40.0),
            run("crest", seed, 0.84 + noise, 15.0),
        ]  # fmt: skip
    value, low, high = pilot_check.measured(runs)
    assert value == pytest.approx(2.0 * 2 ** (0.025 / 2) / 1.5, rel=1e-3)
    assert low < value < high
    lead, half = pilot_check.lead_of(runs)
    assert lead == pytest.approx(100 * (0.84025 - 0.80 - 0.04 * np.log2(1.5)))
    assert 0 < half < 0.1
    said = Pilot(10, 10, 5, 1.8, (1.7, 1.9), 1.5, 1.5, 2.0, 0.0, (0.4,), 0.0, 1.0, 8)._asdict() | {
        "setting": "tiny"
    }
    wrong = said | {"equivalent_batch": 0.75, "equivalent_batch_interval": (0.7, 0.8)}
    text = pilot_check.summarise([said, wrong], {"tiny": runs})
    assert "right in 1 of the 2 settings" in text
    assert "in 1 of 2." in text
    assert re.search(r"too close to call +\| 1 +\| 0 +\| 0 ", text)
    assert re.search(r"\| no +\| 1 +\| 0 +\| 0 ", text)
    pilot_check.draw([said, wrong], {"tiny": runs}, tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 10_000


def test_with_regions_no_evenness_is_measured():
    config = settings(batch_size=16, subset_size=64, probe_size=64, exclusion=None)
    options = {"view": lambda w: (w, {}), "steps": 64, "seconds": 0.1, "config": config}
    found = pilot(step, jnp.zeros((4, 4)), linear, LABELLED, **options)
    assert (found.evenness, found.paused) == ((), 0.0)
    with pytest.raises(ValueError, match=r"kept in regions but must be chosen at every step .* pass"):
        measure_evenness(crest(linear, LABELLED, config), jnp.zeros((4, 4)), {}, key=jax.random.key(0))


def test_evenness_is_not_told_where_no_coreset_is_chosen():
    config = fresh_settings(batch_size=16, subset_size=64, exclusion=None, select_from=10)
    selector = crest(linear, LABELLED, config)
    with pytest.raises(
        ValueError, match=r"no coreset is chosen in the first steps .* select_from=None"
    ):
        measure_evenness(selector, jnp.zeros((4, 4)), {}, key=jax.random.key(0))
