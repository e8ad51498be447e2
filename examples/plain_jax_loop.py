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
    x = inputs.reshape(len(inputs), -1) / 255 - 0.3
    x = jax.nn.relu(x @ params["hidden"] + params["bias"][None])
    return x @ params["head"], model_state


def init(key):
    first, second = jax.random.split(key)
    hidden, head = jax.random.normal(first, (784, 128)) / 28, jax.random.normal(second, (128, 10)) / 11
    return {"hidden": hidden, "bias": jnp.zeros(128), "head": head}


def main(steps=200):
    data, params = load("fashion_mnist_12k"), init(jax.random.key(0))
    train = ArraySource(data.train_inputs, data.train_labels)
    optimizer = optax.sgd(0.05, momentum=0.9)

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

    params, _ = fit(
        crest(apply_fn, train, CrestConfig.recommended(steps=steps, batch_size=64)),
        train_step,
        (params, optimizer.init(params)),
        key=jax.random.key(1),
        steps=steps,
        view=lambda state: (state[0], {}),
        losses=lambda losses: losses,  # what the step computed anyway tells what is learned
    )
    test = ArraySource(data.test_inputs, data.test_labels)
    accuracy = make_evaluate(apply_fn)(params, {}, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images")
    return accuracy


if __name__ == "__main__":
    main()
