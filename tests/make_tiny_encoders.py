"""Make the tiny BERT and RoBERTa checkpoints in tests/assets, with the activations of transformers.

    pip install torch==2.13.0 transformers    # a CPU build of torch will do
    python tests/make_tiny_encoders.py

Run once; its output is committed. All parameters are random, biases and norms too, so that none can be
left out or swapped unseen.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

ASSETS = Path(__file__).parent / "assets"
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 24, "max_position_embeddings": 20,
}  # fmt: skip


def activations(model: torch.nn.Module, ids: np.ndarray, types: np.ndarray) -> dict[str, np.ndarray]:
    """Return the hidden states, and what the pooler makes of them, of token ids [b, l]."""
    model.eval()
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(ids),
            token_type_ids=torch.tensor(types),
            attention_mask=torch.tensor(ids != model.config.pad_token_id).long(),
        )
    arrays = {"ids": ids, "types": types, "states": found.last_hidden_state.numpy()}
    if getattr(found, "pooler_output", None) is not None:
        arrays["pooled"] = found.pooler_output.numpy()
    return arrays


def make(name: str, folder: Path, seed: int = 0) -> None:
    """Write config.json, model.safetensors and reference.npz of one kind."""
    torch.manual_seed(seed)
    if name == "bert":
        config = transformers.BertConfig(**SIZES, type_vocab_size=2, pad_token_id=0)
        model = transformers.BertModel(config)
    else:
        config = transformers.RobertaConfig(
            **SIZES, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
        )
        model = transformers.RobertaModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(0.3 * torch.randn_like(value) + ("LayerNorm.weight" in key))
    model.save_pretrained(folder, safe_serialization=True)
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, SIZES["vocab_size"], (4, 12))
    for row, length in enumerate((12, 7, 3, 1)):
        ids[row, length:] = config.pad_token_id
    types = rng.integers(0, config.type_vocab_size, ids.shape)
    np.savez(folder / "reference.npz", **activations(model, ids, types))
    kept = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    for kind in ("bert", "roberta"):
        make(kind, ASSETS / f"tiny_{kind}")
