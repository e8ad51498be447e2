"""What a network takes and what its classes are called: kept in the run folder, so that nothing else is
needed to build it and to feed it."""

import json
from typing import Any, NamedTuple

from experiments.config import TrainConfig
from experiments.data import Dataset
from experiments.data.dataset import Fit
from experiments.harness.options import DataConfig
from experiments.models import build


class Inputs(NamedTuple):
    """The inputs of a network for images or tables, and its classes."""

    shape: tuple[int, ...]  # of one example: height, width and channels, or features
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    white: int  # the brightest value of a pixel
    fit: Fit  # how an image of another size is brought to this one
    feature_names: tuple[str, ...] | None
    sha256: str | None  # of the user's own data

    def as_json(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return json.loads(json.dumps(self._asdict()))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Inputs":
        """Return what ``as_json`` gave.

        Raises:
          TypeError: where a value is absent or unknown.
        """
        made: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**made)


def inputs_of(dataset: Dataset, options: DataConfig) -> Inputs:
    """Return what a network for a data set takes.

    >>> from experiments.data import load
    >>> found = inputs_of(load("fashion_mnist_12k"), DataConfig())
    >>> found.shape, Inputs.from_json(found.as_json()) == found
    ((28, 28, 1), True)
    """
    return Inputs(
        shape=dataset.train_inputs.shape[1:],
        dtype=str(dataset.train_inputs.dtype),
        mean=dataset.mean,
        std=dataset.std,
        class_names=dataset.class_names,
        white=dataset.white,
        fit=options.own().image_fit,
        feature_names=dataset.feature_names,
        sha256=dataset.sha256,
    )


def network_for(config: TrainConfig, inputs: Inputs) -> Any:
    """Return the network of a run on images or tables."""
    return build(
        config.model,
        len(inputs.class_names),
        width=config.network.width,
        input_shape=inputs.shape,
        mean=inputs.mean,
        std=inputs.std,
        **({"norm": config.norm} if config.model.startswith("resnet") else {}),
        **({"imagenet_stem": True} if config.network.imagenet_stem else {}),
    )
