"""CREST with an Equinox model in a loop of your own.

pip install equinox
python examples/equinox_loop.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, make_evaluate
from experiments.data import load


def main(steps=200):
    """Train and return the test accuracy."""
    data = load("fashion_mnist_12k")
    train = ArraySource(data.train_inputs, data.train_labels)
    test = ArraySource(data.test_inputs, data.test_labels)
    model = eqx.nn.MLP(784, 10, width_size=128, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply_fn(params, model_state, inputs, *, train, rng):
        """Return the logits [b, 10]: Equinox models take one example each."""
        del train, rng
        x = inputs.reshape(len(inputs), -1).astype(jnp.float32) / 255 - 0.3
        return jax.vmap(eqx.combine(params, static))(x), model_state

    optimizer = optax.sgd(0.05, momentum=0.9)
    opt_state = optimizer.init(params)

    @jax.jit
    def train_step(params, opt_state, batch):
        def loss(params):
            logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return jnp.average(losses, weights=batch.weights), losses

        (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses

    selector = crest(apply_fn, train, CrestConfig.recommended(steps=steps, batch_size=64))
    state = selector.init(jax.random.key(1), params, {})
    for _ in range(steps):
        state, _ = selector.refresh(state, params, {})
        state, batch = selector.next_batch(state)
        params, opt_state, losses = train_step(params, opt_state, batch)
        state = selector.observe(state, batch, losses)
    accuracy = make_evaluate(apply_fn)(params, {}, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images, {state.num_regions} regions")
    return accuracy


if __name__ == "__main__":
    main()
