"""CREST in a loop of your own that runs many steps as one program, as suits a GPU or TPU.

python examples/scanned_loop.py
"""

import jax
import jax.numpy as jnp
import optax

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, make_evaluate
from crest_jax.gradients.losses import weighted_mean
from crest_jax.loop import chunk_length, several_steps
from experiments.data import load


def apply_fn(params, model_state, inputs, *, train, rng):
    """Return the logits [b, 10] of images [b, 28, 28, 1]; the state holds nothing."""
    x = jax.nn.relu((inputs.reshape(len(inputs), -1) / 255 - 0.3) @ params["hidden"])
    return x @ params["head"], model_state


def view(state):
    """Return the parameters and the state of the model."""
    return state[0], {}


def handed_back(losses):
    """Return the losses of a step, by which learned examples are excluded."""
    return losses


def main(steps=200):
    data, key = load("fashion_mnist_12k"), jax.random.key(0)
    params = {"hidden": jax.random.normal(key, (784, 128)) / 28, "head": jnp.zeros((128, 10))}
    train = ArraySource(data.train_inputs, data.train_labels)
    optimizer = optax.sgd(0.05, momentum=0.9)

    @jax.jit
    def train_step(state, batch):
        def loss(params):
            logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
            losses = cross_entropy(logits, batch.labels)
            return weighted_mean(losses, batch.weights), losses

        gradient, losses = jax.grad(loss, has_aux=True)(state[0])
        updates, opt_state = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], updates), opt_state), losses

    selector = crest(apply_fn, train, CrestConfig.recommended(steps=steps, batch_size=64))
    state, selection, step = (params, optimizer.init(params)), selector.init(key, params, {}), 0
    while step < steps:
        selection, _ = selector.traced.refresh(selection, state[0], {})
        k = chunk_length(min(selector.traced.quiet(selection), steps - step, 32))
        selection, state, _ = several_steps(  # a mini-batch is chosen and trained on, k times
            selector, train_step, selection, state, k, view=view, losses=handed_back
        )
        step += k
    test = ArraySource(data.test_inputs, data.test_labels)
    accuracy = make_evaluate(apply_fn)(state[0], {}, test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images")
    return accuracy


if __name__ == "__main__":
    main()
