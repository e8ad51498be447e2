"""SNLI with RoBERTa, after the paper's language setting (Yang, Kang and Mirzasoleiman, ICML 2023).

    pip install -e '.[prepare,text]'
    python -m experiments.prepare snli
    python -m experiments.configs.snli_roberta --checkpoint DIR --method crest --out runs/snli-crest

DIR holds ``config.json``, ``model.safetensors`` and the tokenizer's files of RoBERTa-base. From the
paper or its public code: data and network, a 10 % budget, coresets throughout, tau 0.1, and exclusion
below alpha 0.1 until a class runs dry. What fine-tuning of RoBERTa usually takes (Liu et al., 2019):
AdamW at 1e-5, 6 % warm-up, linear decay, weight decay 0.1, batches of 32. This project's: three epochs
as full training, subsets of four mini-batches, the curvature of the last layer and the head alone, the
exclusion window, and everything that is not named below, such as b = 1 and h0 = 8. Neither data nor
weights are on a package registry, so no result of its own stands here.
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
