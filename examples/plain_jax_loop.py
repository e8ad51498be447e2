"""CREST with a model that is a plain JAX function, by the library's own loop.

python examples/plain_jax_loop.py
"""

import jax
import jax.numpy as jnp
import optax

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, fit, make_evaluate
from experiments.data import load


def apply_fn(params, model_state, inputs, *, train, rng):
    """Return the logits [b, 10] of images [b, 28, 28, 1]; the state holds nothing."""
    del train, rng
    x = inputs.reshape(len(inputs), -1).astype(jnp.float32) / 255 - 0.3
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias[None])
    weight, bias = params[-1]
    return x @ weight + bias[None], model_state


def init(key, *sizes):
    """Return random layers."""
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (i, o)) / i**0.5, jnp.zeros(o)) for k, i, o in shapes]


def main(steps=200):
    """Train and return the test accuracy."""
    data = load("fashion_mnist_12k")
    train = ArraySource(data.train_inputs, data.train_labels)
    test = ArraySource(data.test_inputs, data.test_labels)
    optimizer = optax.sgd(0.05, momentum=0.9)
    params = init(jax.random.key(0), 784, 128, 10)

    @jax.jit
    def train_step(state, batch):
        params, opt_state = state

        def loss(params):
            logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return jnp.average(losses, weights=batch.weights), losses

        (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), losses

    config = CrestConfig.recommended(steps=steps, batch_size=64)
    params, _ = fit(
        crest(apply_fn, train, config),
        train_step,
        (params, optimizer.init(params)),
        key=jax.random.key(1),
        steps=steps,
        view=lambda state: (state[0], {}),
        losses=lambda losses: losses,  # what the step computed anyway tells what is learned
    )
    accuracy = make_evaluate(apply_fn)(params, {}, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images")
    return accuracy


if __name__ == "__main__":
    main()
