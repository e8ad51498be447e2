"""CREST with a Flax Linen model in a loop of your own.

python examples/linen_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, make_evaluate
from crest_jax.flax import from_linen
from experiments.data import load


class Network(nn.Module):
    """One hidden layer with BatchNorm, on uint8 images."""

    @nn.compact
    def __call__(self, images, train):
        """Return the logits [b, 10] of images [b, 28, 28, 1]."""
        x = images.reshape(len(images), -1).astype(jnp.float32) / 255 - 0.3
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(128)(x))
        return nn.Dense(10)(nn.relu(x))


def main(steps=200):
    """Train and return the test accuracy."""
    data = load("fashion_mnist_12k")
    train = ArraySource(data.train_inputs, data.train_labels)
    test = ArraySource(data.test_inputs, data.test_labels)
    network = Network()
    apply_fn = from_linen(network)
    model_state = network.init(jax.random.key(0), data.train_inputs[:1], train=False)
    params = model_state.pop("params")
    optimizer = optax.sgd(0.05, momentum=0.9)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, model_state, opt_state, batch):
        def loss(params):
            logits, after = apply_fn(params, model_state, batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return jnp.average(losses, weights=batch.weights), (after, losses)

        (_, (after, losses)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, losses

    selector = crest(apply_fn, train, CrestConfig.recommended(steps=steps, batch_size=64))
    state = selector.init(jax.random.key(1), params, model_state)
    for _ in range(steps):
        state, event = selector.refresh(state, params, model_state)
        if event is not None and event.began_region:
            print(f"step {event.step}: region {event.num_regions}, {event.coresets} coresets")
        state, batch = selector.next_batch(state)
        params, model_state, opt_state, losses = train_step(params, model_state, opt_state, batch)
        state = selector.observe(state, batch, losses)
    accuracy = make_evaluate(apply_fn)(params, model_state, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images")
    return accuracy


if __name__ == "__main__":
    main()
