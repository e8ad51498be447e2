"""Runs on the user's own data, and predictions of every kind of run, against NumPy in float64."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import serialization
from helpers import numpy_softmax
from PIL import Image
from small_run import ROOT, SMALL
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from experiments import compare, predict, report, train
from experiments.config import TrainConfig
from experiments.harness import build
from experiments.harness.cli import UserError
from experiments.harness.inputs import inputs_of, network_for
from experiments.harness.options import DataConfig, TextConfig
from experiments.harness.run_folder import INPUTS, check_inputs, read_inputs, write_json, write_network
from experiments.text import problem as language

TINY = dataclasses.replace(
    SMALL.for_method("stratified"), epochs=4, budget=1.0, batch_size=8,
    network=dataclasses.replace(SMALL.network, width=8),
)  # fmt: skip
COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40)}
ASSETS = ROOT / "tests" / "assets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREST_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tmp_path_factory.mktemp("own")


def photo(path, colour, rng, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(rng.normal(colour, 30, (*size, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def image_run(folder):
    """A finished run on photos of two colours, of sizes that differ."""
    rng = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        for number in range(20):
            photo(folder / "photos" / name / f"{number}.png", colour, rng, (6, 6 + number % 3))
    data = DataConfig(dir=folder / "photos", image_size=(6, 5))
    config = dataclasses.replace(TINY, dataset="images", data=data, out=folder / "image_run")
    return config, train.run(config)


def write_rows(path, count, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, [1, 1000, 0.01], (count, 3))
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "a", "b", "c", "kind"])
        for number, row in enumerate(rows):
            lines.writerow([number, *row, "big" if row[0] > 0 else "small"])
    return rows


@pytest.fixture(scope="module")
def table_run(folder):
    """A finished run on a table."""
    write_rows(folder / "table.csv", 60, 0)
    data = DataConfig(dir=folder / "table.csv", label="kind", ignore=("id",))
    config = dataclasses.replace(TINY, dataset="table", data=data, out=folder / "table_run")
    return config, train.run(config)


def unfinished(config, dataset=None):
    """Write what predict reads of a run, with a network that was never trained."""
    config.out.mkdir()
    write_json(config.out / "config.json", config.as_json())
    dataset = build.load_data(config.dataset, config.data) if dataset is None else dataset
    inputs = inputs_of(dataset, config.data)
    write_json(config.out / INPUTS, inputs.as_json())
    example = np.zeros((1, *inputs.shape), inputs.dtype)
    variables = dict(network_for(config, inputs).init(jax.random.key(0), example, train=False))
    write_network(config.out, variables.pop("params"), variables)
    return inputs


@pytest.fixture(scope="module")
def text_run(folder):
    """A run on texts with a tiny encoder that was never trained."""
    checkpoint = folder / "bert"
    shutil.copytree(ASSETS / "tiny_bert", checkpoint)
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fine", "dull", "film"]
    words += [f"w{number}" for number in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(size), strict=True)), "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    config = TrainConfig(
        dataset="texts", model="bert", out=folder / "text_run",
        text=TextConfig(checkpoint=checkpoint, max_tokens=8, train_file=folder / "none.csv"),
    )  # fmt: skip
    config.out.mkdir()
    write_json(config.out / "config.json", config.as_json())
    write_json(config.out / "metrics.json", {"class_names": ["bad", "good"]})
    network = language.build(config, language.load_encoder(config)[1], 2)
    params = network.init(jax.random.key(0), np.zeros((1, 8, 2), np.int32), train=False)["params"]
    params["classifier"] = jax.tree.map(lambda leaf: 50 * leaf, params["classifier"])
    write_network(config.out, params, {})
    return config


def said(capsys, *arguments):
    """The lines that predict prints."""
    predict.main([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def by_hand(run, values):
    """The probabilities of an MLP in float64, from its file alone."""
    inputs = read_inputs(run)
    params = serialization.msgpack_restore((run / "network.msgpack").read_bytes())["params"]
    scaled = (np.asarray(values, np.float64) - np.array(inputs.mean)) / np.array(inputs.std)
    hidden = scaled.reshape(len(values), -1)
    layers = [params[f"Dense_{place}"] for place in range(3)]
    for layer in layers[:-1]:
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    return numpy_softmax(hidden @ layers[-1]["kernel"] + layers[-1]["bias"])


def agree(rows, expected):
    np.testing.assert_allclose(
        [list(row["probabilities"].values()) for row in rows], expected, atol=1e-4
    )
    for row, shares in zip(rows, expected, strict=True):
        assert row["class"] == list(row["probabilities"])[int(shares.argmax())]


def test_a_run_on_own_images_learns_and_keeps_what_predict_needs(image_run, folder, capsys):
    config, metrics = image_run
    assert metrics["test_accuracy"] > 0.8
    assert metrics["class_names"] == ["blue", "red"]
    inputs = read_inputs(config.out)
    assert inputs.shape == (6, 5, 3)
    assert inputs.sha256 == build.load_data(config.dataset, config.data).sha256
    moved = folder / "photos_moved"
    (folder / "photos").rename(moved)  # the training data are not read again
    paths = [moved / "red" / "0.png", moved / "blue" / "1.png"]
    try:
        rows = said(capsys, config.out, "--image", *paths)
        assert [row["class"] for row in rows] == ["red", "blue"]
        assert [row["image"] for row in rows] == list(map(str, paths))
        agree(rows, by_hand(config.out, predict.read_images(paths, inputs)))
        again = said(capsys, config.out, "--image", *paths[:1] * 33)  # two calls of the network
        assert len(again) == 33
        agree(again, np.repeat(by_hand(config.out, predict.read_images(paths[:1], inputs)), 33, 0))
    finally:
        moved.rename(folder / "photos")


def test_an_image_comes_to_the_run_as_in_training(image_run, folder):
    config, _ = image_run
    inputs, data = read_inputs(config.out), build.load_data(config.dataset, config.data)
    paths = sorted((folder / "photos" / "blue").iterdir())
    found = predict.read_images(paths, inputs)
    kept = [*data.train_inputs[data.train_labels == 0], *data.test_inputs[data.test_labels == 0]]
    assert sorted(map(bytes, found)) == sorted(map(bytes, kept))
    grey = folder / "grey.png"
    Image.fromarray(np.full((9, 9), 70, np.uint8)).save(grey)
    assert (predict.read_images([grey], inputs) == 70).all()


def test_a_run_on_digits_takes_pixels_of_its_own_range(folder, capsys):
    config = dataclasses.replace(TINY, out=folder / "digits_run")
    inputs = unfinished(config)
    assert (inputs.shape, inputs.white) == ((8, 8, 1), 16)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(np.repeat(pixels[..., None], 3, 2)).save(folder / "digit.png")
    rows = said(capsys, config.out, "--image", folder / "digit.png")
    agree(rows, by_hand(config.out, np.rint(pixels / 255 * 16)[None, ..., None]))


def forget():
    """Forget the data and the programs of this process, as a new one would."""
    for kept in (build._load, build._array_sources, build.make_program):
        kept.cache_clear()


def test_a_resumed_run_notices_that_its_images_changed(image_run, folder):
    config, metrics = image_run
    (config.out / "metrics.json").unlink()
    resumed = dataclasses.replace(config, resume=True)
    assert train.run(resumed)["params_sha256"] == metrics["params_sha256"]
    (config.out / "metrics.json").unlink()
    path = folder / "photos" / "red" / "3.png"
    before = path.read_bytes()
    photo(path, (0, 0, 0), np.random.default_rng(2))
    forget()
    with pytest.raises(
        UserError, match=r"image_run holds a run on other data than --data\.dir holds now"
    ):
        train.run(resumed)
    path.write_bytes(before)
    forget()
    now = inputs_of(build.load_data(config.dataset, config.data), config.data)
    check_inputs(config.out, now)  # put back, it may go on
    check_inputs(config.out, now._replace(mean=(0.0, 0.0, 0.0)))  # where sums round otherwise, too
    with pytest.raises(UserError, match="rows or classes having changed"):
        check_inputs(config.out, now._replace(sha256="0" * 64))


def test_rows_of_a_table_are_classified_by_the_names_of_its_columns(table_run, folder, capsys):
    config, metrics = table_run
    assert metrics["test_accuracy"] > 0.7
    assert read_inputs(config.out).feature_names == ("a", "b", "c")
    rows = write_rows(folder / "new.csv", 40, 5)
    found = said(capsys, config.out, "--csv", folder / "new.csv")
    assert [row["row"] for row in found] == list(range(1, 41))
    agree(found, by_hand(config.out, rows))
    wanted = np.where(rows[:, 0] > 0, "big", "small")
    assert np.mean([row["class"] for row in found] == wanted) > 0.7
    with (folder / "new.csv").open() as file:
        columns = list(zip(*csv.reader(file), strict=True))
    with (folder / "shuffled.csv").open("w", newline="") as file:
        csv.writer(file).writerows(zip(*columns[::-1][1:], strict=True))  # without the label
    assert said(capsys, config.out, "--csv", folder / "shuffled.csv") == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "table"])
def test_own_data_are_compared_and_reported_until_they_change(
    image_run, table_run, folder, kind, monkeypatch
):
    config, out = {"images": image_run, "table": table_run}[kind][0], folder / f"compared_{kind}"
    own = ["--data.image-size", "6", "5"] if kind == "images" else ["--data.label", "kind"]
    command = [
        *("--dataset", kind, "--model", "mlp", "--network.width", "8", *own, "--batch-size", "8"),
        *("--data.dir", str(config.data.dir), "--epochs", "4", "--budget", "1"),
        *("--run.evaluations", "2", "--run.checkpoints", "2", "--crest.region.probe-size", "8"),
        *("--crest.subset-size", "16", "--methods", "stratified", "crest", "--out", str(out)),
        *(["--data.ignore", "id"] if kind == "table" else []),
    ]
    compare.main(command)
    lines = [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"stratified", "crest"}
    assert all(line["test_accuracy"] > 0.7 for line in lines)
    report.build(report.ReportConfig(runs=out, out=out / "page.html"))
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "Share of each class among the picks" in page
    assert ("The examples that CREST picks most" in page) == (kind == "images"), "rows are no pictures"
    changed = sorted((folder / "photos").rglob("*.png"))[0] if kind == "images" else config.data.dir
    before = changed.read_bytes()
    if kind == "images":
        photo(changed, (0, 0, 0), np.random.default_rng(2))
    else:
        write_rows(changed, 60, 9)
    forget()
    with pytest.raises(
        SystemExit, match=r"stratified-seed0 holds a run on other data than --data\.dir"
    ):
        compare.main(command)
    with pytest.raises(UserError, match=r"crest-seed0 holds a run on other data .* --without-picks"):
        report.build(report.ReportConfig(runs=out, out=out / "page.html"))
    changed.write_bytes(before)
    forget()
    monkeypatch.setattr(train, "make_program", None)  # all is there; nothing is run again
    compare.main(command)


def test_features_without_names_are_taken_in_order(folder, capsys):
    values = np.random.default_rng(0).normal(3, 2, (20, 2))
    np.savez(folder / "a.npz", X=values, y=np.arange(20) % 2)
    data = DataConfig(dir=folder / "a.npz")
    config = dataclasses.replace(TINY, dataset="table", data=data, out=folder / "npz_run")
    unfinished(config)
    path = folder / "two.csv"
    path.write_text("p,q\n1,2\n3,4\n")
    agree(said(capsys, config.out, "--csv", path), by_hand(config.out, [[1, 2], [3, 4]]))
    path.write_text("p,q,r\n1,2,3\n")
    with pytest.raises(SystemExit, match="has 3 columns but the run takes 2 features without names"):
        predict.main([str(config.out), "--csv", str(path)])


def test_texts_are_classified(text_run, capsys):
    rows = said(capsys, text_run.out, "--text", "fine film", "dull", "fine film")
    assert [row["text"] for row in rows] == ["fine film", "dull", "fine film"]
    assert rows[0]["probabilities"] == rows[2]["probabilities"] != rows[1]["probabilities"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-3) for row in rows)
    assert list(rows[0]["probabilities"]) == ["bad", "good"]


ALONE = """
import sys
from experiments import predict

def loaded(name):
    return [module for module in sys.modules if module.split(".")[0] == name]

table, image, text = (arguments.split() for arguments in sys.argv[1:])
predict.main(table)
assert not loaded("PIL") and not loaded("tokenizers") and not loaded("matplotlib")
predict.main(image)
assert loaded("PIL") and not loaded("tokenizers") and not loaded("safetensors")
from experiments import train
assert not loaded("tokenizers") and not loaded("safetensors")
for module in loaded("PIL"):
    del sys.modules[module]
predict.main(text)
assert loaded("tokenizers") and not loaded("PIL")
"""


def test_no_kind_of_run_imports_what_another_needs(image_run, table_run, text_run, folder):
    commands = (
        f"{table_run[0].out} --csv {folder}/table.csv",
        f"{image_run[0].out} --image {folder}/photos/red/0.png",
        f"{text_run.out} --text fine",
    )
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *commands],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 60 + 1 + 1


WRONG = {
    "nothing for images": ("image_run", [], "nothing to classify; pass --image, for .* images"),
    "nothing for a table": ("table_run", [], "nothing to classify; pass --csv, for .* a table"),
    "nothing for texts": ("text_run", [], "nothing to classify; pass --text or --file, for"),
    "a table for images": (
        "image_run", ["--csv", "a.csv"], r"^error: --csv does not fit \S+, a run on images; pass",
    ),
    "a text for images": ("image_run", ["--text", "a"], "--text does not fit .* pass --image"),
    "an image for a table": ("table_run", ["--image", "a"], "--image does not fit .* on a table"),
    "an image for texts": ("text_run", ["--image", "a"], "--image does not fit .* a run on texts"),
    "images and texts": ("text_run", ["--text", "a", "--image", "b"], "--image does not fit"),
    "no such image": ("image_run", ["--image", "/no/a.png"], r"--image /no/a\.png cannot be read as"),
    "no image": ("image_run", ["--image", __file__], "cannot be read as an image .* name another"),
    "no such table": ("table_run", ["--csv", "/no/a.csv"], r"/no/a\.csv cannot be read"),
    "a column is missing": ("table_run", ["--csv", "COLUMNS"], "has no column 'b' but a, c; give it"),
    "a value is text": ("table_run", ["--csv", "TEXT"], "has 'x' in line 2, column 'b', but feat"),
    "an empty text": ("text_run", ["--text", " "], "text 1 is empty"),
    "pairs": ("text_run", ["--text", "a", "--second", "b", "c"], "there are 1 texts and 2 second ones"),
    "second ones alone": ("text_run", ["--second", "b"], "no text to classify but there are second"),
    "no run": ("nowhere", ["--text", "a"], r"nowhere holds no config\.json of a run"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_predicted_is_refused(image_run, table_run, text_run, folder, case):
    run, arguments, message = WRONG[case]
    (folder / "COLUMNS").write_text("a,c\n1,2\n")
    (folder / "TEXT").write_text("a,b,c\n1,x,2\n")
    own = [str(folder / word) if word.isupper() else word for word in arguments]
    with pytest.raises(SystemExit, match=message) as ended:
        predict.main([str(folder / run), *own])
    assert len(str(ended.value).splitlines()) == 1
    assert str(ended.value).endswith(".")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("network.msgpack", None, r"holds no network\.msgpack but must be a finished run; finish it"),
        ("network.msgpack", b"x", r"network\.msgpack cannot be read"),
        ("inputs.json", None, r"holds no inputs\.json but must be a finished run; finish it"),
        ("inputs.json", b"{}", r"inputs\.json cannot be read .* train again"),
        ("inputs.json", b"[]", r"inputs\.json cannot be read .* train again"),
        ("config.json", b"[]", r"holds no config\.json of a run"),
    ],
)
def test_a_damaged_run_is_refused(image_run, folder, tmp_path, file, content, message):
    copy = tmp_path / "run"
    shutil.copytree(image_run[0].out, copy)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(predict.predict(predict.PredictConfig(copy, image=(folder / "photos/red/0.png",))))


def test_an_unfinished_run_on_texts_is_refused(text_run, tmp_path):
    shutil.copytree(text_run.out, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"holds no metrics\.json with class names"):
        list(predict.predict(predict.PredictConfig(tmp_path / "run", text=("a",))))
