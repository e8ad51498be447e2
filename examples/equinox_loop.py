"""CREST with an Equinox model, dropout and BatchNorm (eqx.nn.State), by the library's own loop.

pip install equinox
python examples/equinox_loop.py

Equinox's BatchNorm counts all examples of a mini-batch alike, whatever their weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, fit, make_evaluate
from experiments.data import load


def network(key):
    keys = jax.random.split(key)
    scale, relu = (eqx.nn.Lambda(f) for f in (lambda x: x.ravel() / 255 - 0.3, jax.nn.relu))
    hidden, head = eqx.nn.Linear(784, 128, key=keys[0]), eqx.nn.Linear(128, 10, key=keys[1])
    norm = eqx.nn.BatchNorm(128, axis_name="batch", momentum=0.9, mode="batch")
    return eqx.nn.Sequential([scale, hidden, norm, relu, eqx.nn.Dropout(0.1), head])


def main(steps=200):
    data = load("fashion_mnist_12k")
    model, model_state = eqx.nn.make_with_state(network)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.sgd(0.05, momentum=0.9)

    def apply_fn(params, model_state, inputs, *, train, rng):
        model = eqx.nn.inference_mode(eqx.combine(params, static), value=not train)
        keys = jax.random.split(rng, len(inputs)) if train else None
        run = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
        logits, after = run(inputs, model_state, key=keys)
        return logits, after if train else model_state

    @jax.jit
    def train_step(train_state, batch):
        params, model_state, opt_state, key = train_state
        key, rng = jax.random.split(key)

        def loss(params):
            logits, after = apply_fn(params, model_state, batch.inputs, train=True, rng=rng)
            losses = cross_entropy(logits, batch.labels)
            return jnp.average(losses, weights=batch.weights), (after, losses)

        (_, (after, losses)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), after, opt_state, key), losses

    train = ArraySource(data.train_inputs, data.train_labels)
    config = CrestConfig.recommended(steps=steps, batch_size=64, batch_norm=True)
    selector = crest(apply_fn, train, config)
    start = params, model_state, optimizer.init(params), jax.random.key(2)
    same, view = (lambda losses: losses), (lambda state: state[:2])
    end = fit(selector, train_step, start, key=jax.random.key(1), steps=steps, view=view, losses=same)
    test = ArraySource(data.test_inputs, data.test_labels)
    accuracy = make_evaluate(apply_fn)(*view(end), test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images")
    return accuracy


if __name__ == "__main__":
    main()
