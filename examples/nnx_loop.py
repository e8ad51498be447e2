"""CREST with a Flax NNX model in a loop of your own.

python examples/nnx_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, make_evaluate
from crest_jax.flax import from_nnx
from experiments.data import load


class Network(nnx.Module):
    """One hidden layer with BatchNorm and dropout, on uint8 images."""

    def __init__(self, rngs):
        """Make the layers."""
        self.hidden = nnx.Linear(784, 128, rngs=rngs)
        self.norm = nnx.BatchNorm(128, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        """Return the logits [b, 10] of images [b, 28, 28, 1]."""
        x = images.reshape(len(images), -1).astype(jnp.float32) / 255 - 0.3
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def main(steps=200):
    """Train and return the test accuracy."""
    data = load("fashion_mnist_12k")
    train = ArraySource(data.train_inputs, data.train_labels)
    test = ArraySource(data.test_inputs, data.test_labels)
    apply_fn, params, model_state = from_nnx(Network(nnx.Rngs(0)))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, model_state, opt_state, batch, key):
        def loss(params):
            logits, after = apply_fn(params, model_state, batch.inputs, train=True, rng=key)
            losses = cross_entropy(logits, batch.labels)
            return jnp.average(losses, weights=batch.weights), (after, losses)

        (_, (after, losses)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, losses

    selector = crest(apply_fn, train, CrestConfig.recommended(steps=steps, batch_size=64))
    key, selector_key = jax.random.split(jax.random.key(0))
    state = selector.init(selector_key, params, model_state)
    for step in range(steps):
        state, _ = selector.refresh(state, params, model_state)
        state, batch = selector.next_batch(state)
        params, model_state, opt_state, losses = train_step(
            params, model_state, opt_state, batch, jax.random.fold_in(key, step)
        )
        state = selector.observe(state, batch, losses)
    accuracy = make_evaluate(apply_fn)(params, model_state, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images, {state.num_regions} regions")
    return accuracy


if __name__ == "__main__":
    main()
