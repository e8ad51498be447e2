"""CREST with a Flax Linen model, dropout and BatchNorm, in a loop of your own.

python examples/linen_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, make_evaluate
from crest_jax.flax import WeightedBatchNorm, from_linen
from experiments.data import load


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, train, weights=None):
        x = nn.Dense(128)(images.reshape(len(images), -1) / 255 - 0.3)
        x = nn.relu(WeightedBatchNorm(momentum=0.9)(x, not train, weights))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x))


def main(steps=200):
    data, network = load("fashion_mnist_12k"), Network()
    train = ArraySource(data.train_inputs, data.train_labels)
    model_state = network.init(jax.random.key(0), data.train_inputs[:1], train=False)
    params = model_state.pop("params")
    apply_fn, optimizer = from_linen(network), optax.sgd(0.05, momentum=0.9)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, model_state, opt_state, batch, rng):
        def loss(params):
            logits, after = apply_fn(
                params, model_state, batch.inputs, train=True, rng=rng, weights=batch.weights
            )
            losses = cross_entropy(logits, batch.labels)
            return jnp.average(losses, weights=batch.weights), (after, losses)

        (_, (after, losses)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), after, opt_state, losses

    config = CrestConfig.recommended(steps=steps, batch_size=64, batch_norm=True)
    selector = crest(apply_fn, train, config)
    state = selector.init(jax.random.key(1), params, model_state)
    for rng in jax.random.split(jax.random.key(2), steps):
        state, _ = selector.refresh(state, params, model_state)
        state, batch = selector.next_batch(state)
        params, model_state, opt_state, losses = train_step(params, model_state, opt_state, batch, rng)
        state = selector.observe(state, batch, losses)
    test = ArraySource(data.test_inputs, data.test_labels)
    accuracy = make_evaluate(apply_fn)(params, model_state, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images, {state.num_selected} coresets")
    return accuracy


if __name__ == "__main__":
    main()
