"""TinyImageNet with ResNet-50, after the paper's third setting (Yang, Kang, Mirzasoleiman, ICML 2023).

    unzip tiny-imagenet-200.zip -d DATA
    python -m experiments.configs.tinyimagenet_resnet50 --data-dir DATA --out runs/tinyimagenet

From the paper or its public code: data and network, 200 epochs as full training, a 10 % budget,
batches of 128 out of random subsets of 1 % of the data, a rate of 0.1 after a warm-up of a tenth,
dropped at half and three quarters, coresets throughout, tau 0.1, and exclusion below alpha 0.1 until a
class runs dry. This project's: momentum, weight decay, the exclusion window, coresets trained on
whole, and everything that is not named below, such as b = 1, h0 = 8, at most 16 steps between checks
and signed curvature (the public code has b = 5, h0 = 1). The data are on no package registry, so no
result of its own stands here.
"""

from pathlib import Path

from crest_jax import CrestConfig
from experiments.config import TrainConfig
from experiments.train import main

CONFIG = TrainConfig(
    dataset="tiny_imagenet",
    model="resnet50",
    width=64,
    imagenet_stem=True,
    epochs=200,
    budget=0.1,
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    select_span=(0.0, 1.0),
    crest=CrestConfig(
        batch_size=128,
        subset_size=1000,
        exclude_below=0.1,
        exclude_window=400,
        exclude_for=None,
        exclude_keep=0.0,
    ),
    out=Path("runs/tinyimagenet_resnet50"),
)

if __name__ == "__main__":
    main(CONFIG)
