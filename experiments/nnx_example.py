"""CREST with a Flax NNX model in a loop of your own, on the data that ship with the project.

    python -m experiments.nnx_example

A few seconds on a laptop; about 83 % of the test images are right after 200 steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tqdm import tqdm

from crest_jax import (
    ArraySource,
    Batch,
    CrestConfig,
    crest,
    cross_entropy,
    from_nnx,
    make_evaluate,
    weighted_mean,
)
from experiments import data


class Perceptron(nnx.Module):
    """One hidden layer with BatchNorm and dropout, on uint8 images."""

    def __init__(self, pixels: int, classes: int, rngs: nnx.Rngs) -> None:
        """Make the layers."""
        self.hidden = nnx.Linear(pixels, 128, rngs=rngs)
        self.norm = nnx.BatchNorm(128, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the logits [b, classes] of images [b, h, w, 1]."""
        x = images.reshape(len(images), -1).astype(jnp.float32) / 255 - 0.3
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def main(steps: int = 200) -> float:
    """Train and return the test accuracy."""
    dataset = data.load("fashion_mnist_12k")
    train = ArraySource(dataset.train_inputs, dataset.train_labels)
    test = ArraySource(dataset.test_inputs, dataset.test_labels)
    apply_fn, params, model_state = from_nnx(Perceptron(784, 10, nnx.Rngs(0)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(
        params: Any, model_state: Any, opt_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, new_state = apply_fn(params, model_state, batch.inputs, train=True, rng=key)
            return weighted_mean(cross_entropy(logits, batch.labels), batch.weights), new_state

        (value, model_state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state, value

    selection = crest(apply_fn, train, CrestConfig(batch_size=64, subset_size=256))
    key, selection_key = jax.random.split(jax.random.key(0))
    selected = selection.init(selection_key, params, model_state)
    for step in tqdm(range(steps), unit="step"):
        selected, _ = selection.refresh(selected, params, model_state)
        selected, batch = selection.next_batch(selected)
        params, model_state, opt_state, _ = train_step(
            params, model_state, opt_state, batch, jax.random.fold_in(key, step)
        )
    accuracy = make_evaluate(apply_fn)(params, model_state, test).accuracy
    print(f"{100 * accuracy:.1f} % of {len(test)} test images, {selected.regions} regions")
    return accuracy


if __name__ == "__main__":
    main()
