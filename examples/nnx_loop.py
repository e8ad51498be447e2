"""CREST with a Flax NNX model that nnx.Optimizer trains in place, in a loop of your own.

python examples/nnx_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy, make_evaluate
from crest_jax.flax import NNXWeightedBatchNorm, from_nnx
from experiments.data import load


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(784, 128, rngs=rngs)
        self.norm = NNXWeightedBatchNorm(128, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images, weights=None):
        x = self.hidden(images.reshape(len(images), -1) / 255 - 0.3)
        return self.head(self.dropout(nnx.relu(self.norm(x, weights=weights))))


@nnx.jit
def train_step(model, optimizer, batch):
    def loss(model):
        losses = cross_entropy(model(batch.inputs, batch.weights), batch.labels)
        return jnp.average(losses, weights=batch.weights), losses

    (_, losses), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradient)
    return losses


def main(steps=200):
    data, model = load("fashion_mnist_12k"), Network(nnx.Rngs(0))
    train = ArraySource(data.train_inputs, data.train_labels)
    schedule = optax.cosine_decay_schedule(2e-3, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-2), wrt=nnx.Param)
    apply_fn = from_nnx(model)
    config = CrestConfig.recommended(steps=steps, batch_size=64, batch_norm=True)
    selector = crest(apply_fn, train, config)
    state = selector.init(jax.random.key(1), *apply_fn.view(model))
    for _ in range(steps):
        state, _ = selector.refresh(state, *apply_fn.view(model))  # the model as it is now
        state, batch = selector.next_batch(state)
        losses = train_step(model, optimizer, batch)
        state = selector.observe(state, batch, losses)
    test = ArraySource(data.test_inputs, data.test_labels)
    accuracy = make_evaluate(apply_fn)(*apply_fn.view(model), test)["accuracy"]
    print(f"{100 * accuracy:.1f} % of {len(test)} test images, {state.num_selected} coresets")
    return accuracy


if __name__ == "__main__":
    main()
