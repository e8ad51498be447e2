"""The settings of the map: data, network, length of training and each method's learning rate.

Rates were chosen on validation rows; see ``experiments/results/README.md``.
"""

import dataclasses

from crest_jax import CrestConfig
from experiments.config import Method, TrainConfig


@dataclasses.dataclass(frozen=True)
class Setting:
    """One place of the map."""

    run: TrainConfig  # everything but method and seed
    rates: dict[Method, float] = dataclasses.field(default_factory=dict)  # where not the run's own

    def options(self, method: Method, seed: int, steps_factor: float = 1.0) -> TrainConfig:
        """Return the options of one run, with so many times the budget."""
        rate = self.rates.get(method, self.run.learning_rate)
        budget, epochs = self.run.budget * steps_factor, self.run.epochs
        while budget > 1:  # more steps than full training has: a share of a longer one
            budget, epochs = budget / 2, 2 * epochs
        return dataclasses.replace(
            self.run, method=method, seed=seed, budget=budget, epochs=epochs, learning_rate=rate
        )


RESNET = TrainConfig(
    dataset="fashion_mnist_20k", epochs=20, budget=0.102, evaluations=10, checkpoints=1,
)  # fmt: skip
MLP = TrainConfig(
    dataset="fashion_mnist", model="mlp", epochs=50, budget=0.1, evaluations=10, checkpoints=1,
    crest=CrestConfig(batch_size=130, subset_size=260),
)  # fmt: skip
# The same for rows drawn with heavy-tailed repetition and 50:1 imbalance: 462 of 3,080 steps.
REDUNDANT_MLP = dataclasses.replace(
    MLP, dataset="fashion_mnist_20k_redundant", epochs=20, budget=0.15,
    crest=dataclasses.replace(MLP.crest, exclude_window=50),
)  # fmt: skip
REDUNDANT_RESNET = dataclasses.replace(RESNET, dataset="fashion_mnist_20k_redundant")
# Fine-tuning of a pretrained encoder: film reviews, batches of 32, 54 of 536 steps.
MINILM = TrainConfig(
    dataset="rotten_tomatoes", model="minilm", epochs=2, budget=0.1, evaluations=10, checkpoints=1,
    optimizer="adamw", learning_rate=2e-4, schedule="linear",
    crest=CrestConfig(batch_size=32, subset_size=64, curvature_of="classifier|layer_5"),
)  # fmt: skip

MAP: dict[str, Setting] = {
    "short_resnet": Setting(RESNET),
    "short_resnet_fast": Setting(dataclasses.replace(RESNET, learning_rate=0.2)),
    "short_mlp": Setting(dataclasses.replace(MLP, epochs=10)),
    "long_resnet": Setting(dataclasses.replace(RESNET, epochs=200, budget=0.1)),
    "long_resnet_augmented": Setting(dataclasses.replace(RESNET, epochs=200, budget=0.1, augment=True)),
    "long_mlp": Setting(dataclasses.replace(MLP, learning_rate=0.05)),
    "redundant_resnet": Setting(REDUNDANT_RESNET),
    "redundant_mlp": Setting(REDUNDANT_MLP),
    "redundant_long_mlp": Setting(dataclasses.replace(REDUNDANT_MLP, budget=0.75)),
}

SMALL_MLP = dataclasses.replace(MLP, width=128)
TWELVE = dataclasses.replace(MLP, dataset="fashion_mnist_12k")
# Places that no choice of this project was made on, to check `crest_jax.pilot` against.
HELD_BACK: dict[str, Setting] = {
    "mlp_20k": Setting(dataclasses.replace(MLP, dataset="fashion_mnist_20k", epochs=20)),
    "mlp_20k_long": Setting(
        dataclasses.replace(MLP, dataset="fashion_mnist_20k", epochs=100, learning_rate=0.05),
    ),
    "mlp_very_short": Setting(dataclasses.replace(MLP, epochs=5)),
    "small_mlp_long": Setting(dataclasses.replace(SMALL_MLP, learning_rate=0.05)),
    "small_mlp_redundant": Setting(dataclasses.replace(REDUNDANT_MLP, width=128)),
    "redundant_small_batches": Setting(
        dataclasses.replace(
            REDUNDANT_MLP,
            learning_rate=0.05,
            crest=dataclasses.replace(REDUNDANT_MLP.crest, batch_size=64, subset_size=128),
        ),
    ),
    "redundant_twice": Setting(dataclasses.replace(REDUNDANT_MLP, budget=0.3)),
    "mlp_12k": Setting(dataclasses.replace(TWELVE, epochs=10)),
    "mlp_12k_long": Setting(dataclasses.replace(TWELVE, epochs=100, learning_rate=0.05)),
    "resnet_12k": Setting(
        dataclasses.replace(RESNET, dataset="fashion_mnist_12k", epochs=10, budget=0.1)
    ),
}
LANGUAGE: dict[str, Setting] = {"rotten_tomatoes": Setting(MINILM)}
SETTINGS = MAP | HELD_BACK | LANGUAGE
