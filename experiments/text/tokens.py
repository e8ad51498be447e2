"""Texts as token ids of few shapes: tokenised once, kept in a cache, cut to the batch's length."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer, implementations
from tqdm import tqdm

from crest_jax import ArraySource, Examples
from crest_jax.data.devices import split
from experiments.data.cache import read_cache, write_cache
from experiments.data.dataset import one_line
from experiments.harness.cli import UserError
from experiments.text.encoder import EncoderConfig
from experiments.text.texts import Texts

CHUNK = 1000  # texts tokenised at once
VERSION = 1  # of the cache's layout
BUCKETS = (16, 32, 64, 96, 128, 192, 256, 384, 512)


class Tokens(NamedTuple):
    """Tokenised texts."""

    inputs: np.ndarray  # [n, l, 2], int32: ids and types; padded at the end with the padding id
    lengths: np.ndarray  # [n], int32, tokens of each text
    cut: int  # texts that were longer than allowed


def load_tokenizer(folder: Path, config: EncoderConfig, longest: int) -> Tokenizer:
    """Read ``tokenizer.json``, or ``vocab.txt``, or ``vocab.json`` with ``merges.txt``.

    It cuts texts to ``longest`` tokens.

    Raises:
      UserError: when there is none, it is damaged, or it belongs to other weights.
    """
    whole, words, pieces, merges = (
        folder / name for name in ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
    )
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        elif words.is_file():
            tokenizer = implementations.BertWordPieceTokenizer(str(words))._tokenizer
        elif pieces.is_file() and merges.is_file():
            tokenizer = _byte_level(pieces, merges)
        else:
            raise UserError(
                f"{folder} holds no tokenizer.json but must be a folder in the Hugging Face layout; "
                "copy the tokenizer's files there."
            )
    except UserError:
        raise
    except Exception as error:  # the package raises bare exceptions
        raise UserError(
            f"the tokenizer in {folder} cannot be read ({one_line(error)[:120]}); download it again."
        ) from error
    size, pad = tokenizer.get_vocab_size(), "[PAD]" if config.model_type == "bert" else "<pad>"
    found = tokenizer.token_to_id(pad)
    if size > config.vocab_size or found != config.pad_token_id:
        raise UserError(
            f"the tokenizer in {folder} has {size} tokens and {pad} at {found} but the weights are for "
            f"{config.vocab_size} tokens and padding {config.pad_token_id}; take both from one "
            "checkpoint."
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return tokenizer


def _byte_level(vocabulary: Path, merges: Path) -> Tokenizer:
    tokenizer = implementations.ByteLevelBPETokenizer(str(vocabulary), str(merges))._tokenizer
    from tokenizers.processors import RobertaProcessing

    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    end, start = (tokenizer.token_to_id(name) or 0 for name in ("</s>", "<s>"))
    tokenizer.post_processor = RobertaProcessing(("</s>", end), ("<s>", start))
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Texts, longest: int, pad: int) -> Tokens:
    """Return token ids and types of texts or pairs, cut to ``longest`` tokens and counted."""
    found, types, cut = [], [], 0
    for start in tqdm(range(0, len(texts.first), CHUNK), "tokens", unit="k", disable=None):
        rows = slice(start, start + CHUNK)
        first = texts.first[rows]
        pairs = first if texts.second is None else list(zip(first, texts.second[rows], strict=True))
        for encoding in tokenizer.encode_batch(list(pairs)):
            found.append(encoding.ids)
            types.append(encoding.type_ids)
            cut += bool(encoding.overflowing)
    lengths = np.array([len(ids) for ids in found], np.int32)
    inputs = np.zeros((len(found), bucket(int(lengths.max()), longest), 2), np.int32)
    inputs[..., 0] = pad
    for row, (ids, kinds) in enumerate(zip(found, types, strict=True)):
        inputs[row, : len(ids), 0] = ids
        inputs[row, : len(ids), 1] = kinds
    return Tokens(inputs, lengths, cut)


def bucket(length: int, longest: int) -> int:
    """Return the smallest padded length that holds ``length`` tokens.

    >>> bucket(20, 512), bucket(90, 80), bucket(600, 1000)
    (32, 80, 1000)
    """
    return next((size for size in BUCKETS if length <= size < longest), longest)


def cached_tokens(
    path: Path, tokenizer: Tokenizer, texts: Texts, longest: int, pad: int
) -> tuple[Tokens, str | None]:
    """Return tokens from a cache that was made of these very texts, or make them and the cache.

    Args:
      path: the cache, ``.npz``.
      tokenizer: its own description is part of what the cache must agree with.
      texts: what to tokenise.
      longest: tokens kept of a text.
      pad: padding id.

    Returns:
      The tokens, and a sentence where a cache is there but cannot be used, or none can be written.
    """
    made_of = _fingerprint(tokenizer, texts, longest, pad)
    found, said = read_cache(path, made_of)
    if found is not None:
        return Tokens(found["inputs"], found["lengths"], int(found["cut"])), None
    tokens = tokenize(tokenizer, texts, longest, pad)
    unwritten = write_cache(path, made_of, tokens._asdict(), compress=True)
    return tokens, unwritten or said


def _fingerprint(tokenizer: Tokenizer, texts: Texts, longest: int, pad: int) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, longest, pad]).encode())
    digest.update(tokenizer.to_str().encode())
    for side in (texts.first, texts.second or ()):
        for text in side:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()


class TokenSource(ArraySource):
    """Token arrays on the device; a batch is cut to the bucket of its longest text.

    So a program compiles once for each bucket that occurs, at most ``len(BUCKETS) + 1`` times. The
    rows come to the host for it, which waits until they are known.
    """

    gather = None  # type: ignore[assignment]  # no program knows the length

    def __init__(self, tokens: Tokens, labels: np.ndarray, mesh: Mesh | None = None) -> None:
        """Put the tokens on the devices."""
        super().__init__(tokens.inputs, labels, mesh=mesh)
        self._lengths = tokens.lengths
        self._longest = tokens.inputs.shape[1]

    def take(self, indices: jax.Array) -> Examples:
        """Return the examples at ``indices`` [b], inputs [b, l, 2] with ``l`` the bucket's length."""
        length = bucket(int(self._lengths[np.asarray(indices)].max()), self._longest)
        sharding = None if self.mesh is None else split(self.mesh, len(indices))
        return _take(self.arrays, jnp.asarray(indices), length, sharding)


@partial(jax.jit, static_argnames=("length", "sharding"))
def _take(examples: Examples, rows: jax.Array, length: int, sharding: NamedSharding | None) -> Examples:
    found = Examples(examples.inputs[:, :length][rows], examples.labels[rows])
    return found if sharding is None else jax.lax.with_sharding_constraint(found, sharding)


def by_length(tokens: Tokens, labels: np.ndarray) -> tuple[Tokens, np.ndarray]:
    """Order texts by length, so that an evaluation pads little.

    >>> tokens = Tokens(np.zeros((2, 4, 2), np.int32), np.array([4, 2]), 0)
    >>> by_length(tokens, np.array([0, 1]))[1].tolist()
    [1, 0]
    """
    order = np.argsort(tokens.lengths, kind="stable")
    return Tokens(tokens.inputs[order], tokens.lengths[order], tokens.cut), labels[order]
