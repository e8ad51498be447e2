"""Pretrained encoders in the Hugging Face layout: ``config.json`` and ``model.safetensors``.

Names are mapped by rules; every tensor of the file is used exactly once or named as left out.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from experiments.data.dataset import one_line
from experiments.harness.cli import UserError
from experiments.text.encoder import EncoderConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LAYER = r"encoder\.layer\.(\d+)\."
DENSE = r"\.(weight|bias)"
NORM = r"LayerNorm\.(weight|bias|gamma|beta)"
# name in the file -> path in the parameters; the last group is the leaf
RULES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.word_embeddings\.(weight)", "encoder/embeddings/word"),
    (r"embeddings\.position_embeddings\.(weight)", "encoder/embeddings/position"),
    (r"embeddings\.token_type_embeddings\.(weight)", "encoder/embeddings/type"),
    (rf"embeddings\.{NORM}", "encoder/embeddings/norm"),
    (rf"{LAYER}attention\.self\.query{DENSE}", "encoder/layer_{}/query"),
    (rf"{LAYER}attention\.self\.key{DENSE}", "encoder/layer_{}/key"),
    (rf"{LAYER}attention\.self\.value{DENSE}", "encoder/layer_{}/value"),
    (rf"{LAYER}attention\.output\.dense{DENSE}", "encoder/layer_{}/attention_out"),
    (rf"{LAYER}attention\.output\.{NORM}", "encoder/layer_{}/attention_norm"),
    (rf"{LAYER}intermediate\.dense{DENSE}", "encoder/layer_{}/inner"),
    (rf"{LAYER}output\.dense{DENSE}", "encoder/layer_{}/out"),
    (rf"{LAYER}output\.{NORM}", "encoder/layer_{}/out_norm"),
)
POOLER = (rf"pooler\.dense{DENSE}", "pooler")


class Loaded(NamedTuple):
    """Parameters with the weights of a file in them."""

    params: Any
    left_out: tuple[str, ...]  # tensors of the file that no rule takes
    new: tuple[str, ...]  # parameters that no tensor fills: those of the head


def read_config(folder: Path) -> EncoderConfig:
    """Read ``config.json``.

    Raises:
      UserError: when it is absent, no JSON, or of an encoder that is not supported here.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {CONFIG} but must be a folder in the Hugging Face layout ({CONFIG}, "
            f"{WEIGHTS} and tokenizer.json); name one with --text.checkpoint."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({one_line(error)[:80]}); download it again.") from error
    expected = {
        "model_type": ("bert", "roberta"),
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
    }
    for name, values in expected.items():
        value = found.get(name, values[0] if name != "model_type" else None)
        if value not in values:
            raise UserError(
                f"{path} has {name} {value!r} but must have {' or '.join(values)}; choose such a "
                "checkpoint."
            )
    own = EncoderConfig.__dataclass_fields__
    missing = [name for name in own if name not in found and not name.endswith(("prob", "eps"))]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; download it again.")
    return EncoderConfig(**{name: found[name] for name in own if name in found})


def load_weights(folder: Path, params: Any, config: EncoderConfig) -> Loaded:
    """Return new parameters of a ``SequenceClassifier`` with the encoder's weights from a file.

    A BERT file's pooler goes to the head where the head has one. The rest of the head stays new.

    Args:
      folder: holds ``model.safetensors``.
      params: as ``module.init`` gives them; shapes are checked against these.
      config: of the encoder.

    Raises:
      UserError: when the file is absent or damaged, or a tensor is missing or has a wrong shape.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {WEIGHTS} but must be a folder in the Hugging Face layout; convert "
            "other formats with the transformers library (save_pretrained)."
        )
    flat = traverse_util.flatten_dict(params, sep="/")
    rules = list(RULES)
    if config.model_type == "bert" and "pooler/kernel" in flat:
        rules.append(POOLER)
    patterns = [(re.compile(rf"(?:(?:bert|roberta)\.)?{name}"), target) for name, target in rules]
    filled: dict[str, Any] = {}
    left_out = []
    try:
        with safe_open(path, framework="flax") as file:
            for name in sorted(file.keys()):
                target = _target(name, patterns, flat)
                if target is None:
                    left_out.append(name)
                    continue
                if target in filled:
                    raise UserError(f"{path} holds {target} twice, the second time as {name}.")
                filled[target] = _fitted(path, name, file.get_tensor(name), target, flat[target])
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:120]}) but must be a whole safetensors file; "
            "download it again."
        ) from error
    wanted = [
        p for p in flat if p.startswith("encoder/") or (p.startswith("pooler/") and POOLER in rules)
    ]
    missing = [name for name in wanted if name not in filled]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} tensors, the first for {missing[0]}, but must hold every one "
            f"that {CONFIG} asks for; take both files from one checkpoint."
        )
    new = tuple(name for name in flat if name not in filled)
    return Loaded(traverse_util.unflatten_dict({**flat, **filled}, sep="/"), tuple(left_out), new)


def _target(name: str, patterns: list[tuple[re.Pattern[str], str]], flat: dict[str, Any]) -> str | None:
    for pattern, target in patterns:
        found = pattern.fullmatch(name)
        if found:
            *layer, leaf = found.groups()
            path = target.format(*layer)
            names = ("bias",) if leaf in ("bias", "beta") else ("embedding", "kernel", "scale")
            kinds = [f"{path}/{kind}" for kind in names]
            return next((kind for kind in kinds if kind in flat), None)
    return None


def _fitted(path: Path, name: str, tensor: Any, target: str, like: Any) -> Any:
    """Return a tensor of a file as a parameter: dense kernels are stored transposed there."""
    value = tensor.T if target.endswith("/kernel") else tensor
    if value.shape != like.shape:
        raise UserError(
            f"{path} holds {name} of shape {tuple(tensor.shape)} but {CONFIG} asks for "
            f"{tuple(like.shape[::-1] if target.endswith('/kernel') else like.shape)}; take both files "
            "from one checkpoint."
        )
    return jnp.asarray(value, jnp.float32)
