"""A BERT or RoBERTa encoder with a classification head (Flax Linen).

Devlin et al., "BERT" (NAACL 2019), https://arxiv.org/abs/1810.04805; Liu et al., "RoBERTa" (2019),
https://arxiv.org/abs/1907.11692. Token ids and token types come as one array [b, l, 2], so that texts
are examples like any other; a token is padding where its id is the padding id.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
Pooling = Literal["cls", "mean"]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The fields of a ``config.json`` that shape the encoder, by their names there."""

    model_type: Literal["bert", "roberta"]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    @property
    def longest(self) -> int:
        """Tokens of the longest text that has positions: RoBERTa's begin after the padding id."""
        offset = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - offset


def positions(ids: Array, config: EncoderConfig) -> Array:
    """Return the position of every token [b, l], int32.

    BERT counts from 0. RoBERTa counts the tokens that are no padding, from one above the padding id.

    >>> tiny = EncoderConfig("roberta", 9, 2, 1, 1, 2, 8, 1, pad_token_id=1)
    >>> positions(jnp.array([[5, 6, 1]]), tiny).tolist()
    [[2, 3, 1]]
    """
    if config.model_type == "bert":
        return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    real = (ids != config.pad_token_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1) * real + config.pad_token_id


class Embeddings(nn.Module):
    """Word, position and type embeddings, normalised."""

    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: Array, types: Array, train: bool) -> Array:
        """Map ids and types [b, l] to [b, l, d]."""
        config = self.config

        def table(name: str, size: int) -> nn.Embed:
            return nn.Embed(size, config.hidden_size, embedding_init=_normal, name=name)

        x = table("word", config.vocab_size)(ids)
        x += table("position", config.max_position_embeddings)(positions(ids, config))
        x += table("type", config.type_vocab_size)(types)
        x = nn.LayerNorm(epsilon=config.layer_norm_eps, name="norm")(x)
        return nn.Dropout(config.hidden_dropout_prob)(x, deterministic=not train).astype(self.dtype)


class Layer(nn.Module):
    """Self-attention and a two-layer network, each added to its input and then normalised."""

    config: EncoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, real: Array, train: bool) -> Array:
        """Map ``x`` [b, l, d] to [b, l, d]; ``real`` [b, l] tells tokens from padding."""
        config = self.config

        def dense(name: str, size: int) -> nn.Dense:
            return nn.Dense(size, kernel_init=_normal, dtype=self.dtype, name=name)

        def add_and_norm(name: str, new: Array, x: Array) -> Array:
            new = nn.Dropout(config.hidden_dropout_prob)(new, deterministic=not train)
            norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, name=name)
            return norm(x + new).astype(self.dtype)

        query, key, value = (dense(name, config.hidden_size)(x) for name in ("query", "key", "value"))
        mixed = self.attend(query, key, value, real, train)
        x = add_and_norm("attention_norm", dense("attention_out", config.hidden_size)(mixed), x)
        inner = nn.gelu(dense("inner", config.intermediate_size)(x), approximate=False)
        return add_and_norm("out_norm", dense("out", config.hidden_size)(inner), x)

    def attend(self, query: Array, key: Array, value: Array, real: Array, train: bool) -> Array:
        """Mix values [b, l, d] by scaled dot products, in all heads; softmax in float32."""
        batch, length, width = query.shape
        heads = self.config.num_attention_heads
        split = (batch, length, heads, width // heads)
        query, key, value = (x.reshape(split) for x in (query, key, value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        scores = scores / jnp.sqrt(jnp.float32(width // heads))
        scores = jnp.where(real[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1)
        rate = self.config.attention_probs_dropout_prob
        shares = nn.Dropout(rate)(shares, deterministic=not train).astype(self.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(batch, length, width)


class Encoder(nn.Module):
    """Embeddings and layers."""

    config: EncoderConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, ids: Array, types: Array, train: bool) -> Array:
        """Map ids and types [b, l] to hidden states [b, l, d]."""
        real = ids != self.config.pad_token_id
        layer = nn.remat(Layer, static_argnums=(3,)) if self.remat else Layer
        x = Embeddings(self.config, self.dtype, name="embeddings")(ids, types, train)
        for index in range(self.config.num_hidden_layers):
            x = layer(self.config, self.dtype, name=f"layer_{index}")(x, real, train)
        return x


class SequenceClassifier(nn.Module):
    """An encoder and a linear layer on a summary of the text.

    The summary is the first token's state through a dense layer and tanh ("cls", as BERT and RoBERTa
    are fine-tuned), or the mean of the states of all tokens ("mean", as sentence encoders are trained).
    """

    config: EncoderConfig
    num_classes: int
    pooling: Pooling = "cls"
    dtype: Any = jnp.float32
    remat: bool = False

    def __call__(self, x: Array, train: bool) -> Array:
        """Map ``x`` [b, l, 2], token ids and types, to logits [b, num_classes], float32."""
        return self.features(x, train)[1]

    @nn.compact
    def features(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Map ``x`` [b, l, 2] to the last linear layer's input [b, d] and to logits, both float32."""
        config = self.config
        ids, types = x[..., 0], x[..., 1]
        states = Encoder(config, self.dtype, self.remat, name="encoder")(ids, types, train)
        states = states.astype(jnp.float32)
        drop = nn.Dropout(config.hidden_dropout_prob)
        if self.pooling == "mean":
            real = (ids != config.pad_token_id).astype(jnp.float32)[:, :, None]
            summary = jnp.sum(states * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1.0)
        else:
            first = states[:, 0]
            if config.model_type == "roberta":
                first = drop(first, deterministic=not train)
            summary = nn.tanh(nn.Dense(config.hidden_size, kernel_init=_normal, name="pooler")(first))
        summary = drop(summary, deterministic=not train)
        return summary, nn.Dense(self.num_classes, kernel_init=_normal, name="classifier")(summary)


_normal = nn.initializers.normal(0.02)
