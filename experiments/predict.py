"""Classify new images, rows of a table or texts with a finished run.

    python -m experiments.predict runs/photos --image a.jpg b.png
    python -m experiments.predict runs/table --csv new.csv
    python -m experiments.predict runs/rotten --text "A fine film." "Dull."

Prints one JSON line for each: its class and the probability of every class. Images are brought to the
size and the channels that the run was trained on; a CSV file has the columns of the training data.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from crest_jax.flax import from_linen
from experiments.config import TEXT_DATASETS, TrainConfig
from experiments.data.dataset import WHITE, DataError, one_line
from experiments.data.pixels import decoder, read_image
from experiments.data.table import read_csv
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.inputs import Inputs, network_for
from experiments.harness.run_folder import INPUTS, read_inputs, read_network

CHUNK = 32  # examples that the network takes at once


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What to classify."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    image: tuple[Path, ...] = ()
    """Image files, for a run on images."""
    csv: Path | None = None
    """A CSV file with a header, for a run on a table; columns that were no features are not read."""
    text: tuple[str, ...] = ()
    """Texts, for a run on texts."""
    second: tuple[str, ...] = ()
    """The second texts of pairs, one for each."""
    file: Path | None = None
    """Instead of --text: a file with one text a line."""


# What classifies by which options: of each kind of run, those that name something to classify.
OPTIONS = {"images": ("image",), "a table": ("csv",), "texts": ("text", "second", "file")}


def kind_of(options: TrainConfig) -> str:
    """Return what a run was trained on, a key of ``OPTIONS``."""
    if options.dataset in TEXT_DATASETS:
        return "texts"
    return "a table" if options.dataset == "table" else "images"


def check_kind(config: PredictConfig, kind: str) -> None:
    """Refuse options that do not fit the run, and a command that names nothing.

    Raises:
      UserError: in one sentence.
    """
    own = " or ".join(f"--{name}" for name in OPTIONS[kind] if name != "second")
    for name in (name for names in OPTIONS.values() for name in names):
        if getattr(config, name) not in ((), None) and name not in OPTIONS[kind]:
            raise UserError(f"--{name} does not fit {config.run}, a run on {kind}; pass {own}.")
    if all(getattr(config, name) in ((), None) for name in OPTIONS[kind]):
        raise UserError(
            f"there is nothing to classify; pass {own}, for {config.run} is a run on {kind}."
        )


def texts_of(config: PredictConfig) -> tuple[str, ...]:
    """Return the texts to classify.

    Raises:
      UserError: when there are none, one is empty, or pairs are not complete.
    """
    texts = config.text
    if config.file is not None:
        try:
            texts += tuple(config.file.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--file {config.file} cannot be read ({error}); correct it.") from error
    if not texts:
        raise UserError(
            "there is no text to classify but there are second ones; pass --text or --file."
        )
    for number, text in enumerate((*texts, *config.second), start=1):
        if not text.strip():
            raise UserError(f"text {number} is empty but must hold a word; remove it.")
    if config.second and len(config.second) != len(texts):
        raise UserError(
            f"there are {len(texts)} texts and {len(config.second)} second ones but each pair has one "
            "of both; complete them."
        )
    return texts


def read_options(folder: Path) -> TrainConfig:
    """Return the options of a run.

    Raises:
      UserError: when the folder holds none.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return TrainConfig.from_json(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds no config.json of a run ({type(error).__name__}) but must be its folder; "
            "name one that experiments.train made."
        ) from error


def predict(config: PredictConfig) -> Iterator[dict[str, Any]]:
    """Return class and probabilities of every image, row or text.

    Raises:
      UserError, DataError: when the run or what is to be classified cannot be read.
    """
    options = read_options(config.run)
    kind = kind_of(options)
    check_kind(config, kind)
    if kind == "texts":
        return predict_texts(config, options)
    inputs = read_inputs(config.run)
    if inputs is None:
        raise UserError(f"{config.run} holds no {INPUTS} but must be a finished run; finish it.")
    names: list[dict[str, Any]]
    if config.csv is None:
        names = [{"image": str(path)} for path in config.image]
        values = read_images(config.image, inputs)
    else:
        values = read_rows(config.csv, inputs)
        names = [{"row": number + 1} for number in range(len(values))]
    return classify(config.run, network_for(options, inputs), names, values, inputs.class_names)


def read_images(paths: Sequence[Path], inputs: Inputs) -> np.ndarray:
    """Return images [n, h, w, c] as the run was trained on them.

    Raises:
      DataError: when one cannot be read.
    """
    decoder()  # says what is missing
    height, width, channels = inputs.shape
    found = []
    for path in paths:
        try:
            found.append(read_image(path, (height, width), inputs.fit, channels))
        except Exception as error:  # decoders share none
            raise DataError(
                f"--image {path} cannot be read as an image ({one_line(error)[:120]}); name another."
            ) from error
    pixels = np.stack(found)
    if inputs.white != WHITE:
        pixels = np.rint(pixels * (inputs.white / WHITE)).astype(np.uint8)
    return pixels


def read_rows(path: Path, inputs: Inputs) -> np.ndarray:
    """Return the features [n, d] of the rows of a CSV file, by name, or in order where they have none.

    Raises:
      DataError: when a column is missing or a value is no number.
    """
    found = read_csv(path, None, inputs.feature_names).inputs
    if found.shape[1:] != inputs.shape:
        raise DataError(
            f"{path} has {found.shape[1]} columns but the run takes {inputs.shape[0]} features "
            "without names; give it those columns, in their order."
        )
    return found


def predict_texts(config: PredictConfig, options: TrainConfig) -> Iterator[dict[str, Any]]:
    """Return class and probabilities of every text."""
    texts = texts_of(config)
    from experiments.text import problem as language  # of the extra `text`
    from experiments.text.texts import Texts
    from experiments.text.tokens import tokenize

    class_names = read_class_names(config.run)
    _, encoder, tokenizer = language.load_encoder(options)
    network = language.build(options, encoder, len(class_names))
    tokens = tokenize(
        tokenizer,
        Texts(texts, config.second or None, np.zeros(len(texts), np.int32)),
        options.text.max_tokens,
        encoder.pad_token_id,
    )
    if tokens.cut:
        print(f"{tokens.cut} texts were cut to {options.text.max_tokens} tokens.", file=sys.stderr)
    names = [{"text": text} for text in texts]
    return classify(config.run, network, names, tokens.inputs, class_names)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the class names of a finished run.

    Raises:
      UserError: when it is not finished.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return tuple(metrics["class_names"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no metrics.json with class names ({type(error).__name__}) but must be a "
            "finished run; finish it."
        ) from error


def classify(
    folder: Path,
    network: Any,
    names: Sequence[dict[str, Any]],
    values: np.ndarray,
    class_names: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    """Yield what each example is called, its class and the probabilities of all.

    Args:
      folder: of the run, which holds the trained network.
      network: its module.
      names: what begins the row of each example.
      values: the examples [n, ...].
      class_names: of the network's outputs.
    """
    example = jnp.zeros((1, *values.shape[1:]), values.dtype)
    shapes = dict(
        jax.eval_shape(lambda key: network.init(key, example, train=False), jax.random.key(0))
    )
    params, model_state = read_network(folder, shapes.pop("params"), shapes)
    apply_fn = jax.jit(from_linen(network), static_argnames="train")
    for start in range(0, len(values), CHUNK):
        chunk = values[start : start + CHUNK]
        short = min(CHUNK, len(values)) - len(chunk)  # filled up, so that one program serves all
        filled = np.concatenate([chunk, np.repeat(chunk[:1], short, axis=0)])
        logits, _ = apply_fn(params, model_state, jnp.asarray(filled), train=False, rng=None)
        found = np.asarray(jax.nn.softmax(logits, axis=1), np.float64)[: len(chunk)]
        for name, shares in zip(names[start:], found, strict=False):
            yield {
                **name,
                "class": class_names[int(shares.argmax())],
                "probabilities": dict(zip(class_names, shares.round(4).tolist(), strict=True)),
            }


def main(argv: Sequence[str] | None = None) -> None:
    """Classify and print."""
    with one_sentence("interrupted; what was classified is printed."):
        for row in predict(tyro.cli(PredictConfig, args=argv, description=__doc__)):
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
