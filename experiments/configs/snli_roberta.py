"""SNLI with RoBERTa: the paper's language setting (Yang, Kang and Mirzasoleiman, ICML 2023).

    pip install -e '.[prepare,text]'
    python -m experiments.prepare snli
    python -m experiments.configs.snli_roberta --checkpoint DIR --method crest --out runs/snli-crest

DIR holds ``config.json``, ``model.safetensors`` and the tokenizer's files of RoBERTa-base. A 10 %
budget; the rest is what fine-tuning of RoBERTa usually takes (Liu et al., 2019): AdamW at 1e-5, 6 %
warm-up, linear decay, weight decay 0.1, batches of 32. Three epochs as full training, subsets of four
mini-batches, and the curvature of the last layer and the head are this project's choice. Neither data
nor weights are on a package registry, so no result of its own stands here.
"""

from pathlib import Path

from crest_jax import CrestConfig
from experiments.config import TrainConfig
from experiments.train import main

CONFIG = TrainConfig(
    dataset="snli",
    model="roberta",
    epochs=3,
    budget=0.1,
    optimizer="adamw",
    learning_rate=1e-5,
    weight_decay=0.1,
    schedule="linear",
    warmup=0.06,
    select_span=(0.0, 1.0),
    crest=CrestConfig(
        batch_size=32,
        subset_size=128,
        exclude_below=0.1,
        exclude_window=400,
        exclude_for=None,
        exclude_keep=0.0,
        curvature_of="classifier|layer_11",
    ),
    out=Path("runs/snli_roberta"),
)

if __name__ == "__main__":
    main(CONFIG)
