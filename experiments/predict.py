"""Classify new texts with a finished run.

    python -m experiments.predict runs/rotten --text "A fine film." "Dull."

Prints one JSON line for each text: its class and the probability of every class.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from crest_jax.flax import from_linen
from experiments.config import TEXT_DATASETS, TrainConfig
from experiments.harness.cli import UserError, one_sentence
from experiments.harness.run_folder import read_network

CHUNK = 32  # texts that the network takes at once


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """What to classify."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run on text."""
    text: tuple[str, ...] = ()
    """Texts."""
    second: tuple[str, ...] = ()
    """The second texts of pairs, one for each."""
    file: Path | None = None
    """Instead of --text: a file with one text a line."""


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
        raise UserError("there is no text to classify; pass --text or --file.")
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
    """Return the options of a finished run on text.

    Raises:
      UserError: when the folder holds no such run.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = TrainConfig.from_json(values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no config.json of a run ({type(error).__name__}) but must be its folder; "
            "name one that experiments.train made."
        ) from error
    if config.dataset not in TEXT_DATASETS:
        raise UserError(
            f"{folder} is a run on {config.dataset} but must be one on text; name such a run."
        )
    return config


def predict(config: PredictConfig) -> list[dict[str, Any]]:
    """Return class and probabilities of every text."""
    from experiments.text import problem as language
    from experiments.text.texts import Texts
    from experiments.text.tokens import tokenize

    texts = texts_of(config)
    options = read_options(config.run)
    metrics = json.loads((config.run / "metrics.json").read_text(encoding="utf-8"))
    class_names = metrics["class_names"]
    _, encoder, tokenizer = language.load_encoder(options)
    network = language.build(options, encoder, len(class_names))
    example = jnp.zeros((1, 8, 2), jnp.int32)
    shapes = jax.eval_shape(lambda key: network.init(key, example, train=False), jax.random.key(0))
    params, model_state = read_network(config.run, shapes["params"], {})
    tokens = tokenize(
        tokenizer,
        Texts(texts, config.second or None, np.zeros(len(texts), np.int32)),
        options.text.max_tokens,
        encoder.pad_token_id,
    )
    if tokens.cut:
        print(f"{tokens.cut} texts were cut to {options.text.max_tokens} tokens.", file=sys.stderr)
    apply_fn = jax.jit(from_linen(network), static_argnames="train")
    found = []
    for start in range(0, len(texts), CHUNK):
        inputs = jnp.asarray(tokens.inputs[start : start + CHUNK])
        logits, _ = apply_fn(params, model_state, inputs, train=False, rng=None)
        found.append(np.asarray(jax.nn.softmax(logits, axis=1)))
    return [
        {
            "text": text,
            "class": class_names[int(shares.argmax())],
            "probabilities": dict(zip(class_names, shares.round(4).tolist(), strict=True)),
        }
        for text, shares in zip(texts, np.concatenate(found), strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Classify and print."""
    with one_sentence("interrupted; nothing was written."):
        for row in predict(tyro.cli(PredictConfig, args=argv, description=__doc__)):
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
