# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: choose a coreset, look at it, train with it
#
# You learn to choose a coreset of any data, to train with CREST in your own loop, and to compare it
# with stratified batches. It takes a minute on two cores. The data are the 12,000 images of
# Fashion-MNIST that ship with the project; the network is a small multi-layer perceptron.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from crest_jax import (
    ArraySource,
    CrestConfig,
    crest,
    cross_entropy,
    fit,
    logit_gradients,
    make_evaluate,
    select_coreset,
    stratified_batches,
)
from crest_jax.flax import from_linen
from crest_jax.gradients import embed_rows, weighted_mean
from experiments import data
from experiments.models import build

dataset = data.load("fashion_mnist_12k")
train = ArraySource(dataset.train_inputs, dataset.train_labels)
test = ArraySource(dataset.test_inputs, dataset.test_labels)
network = build("mlp", 10, width=128, input_shape=(28, 28, 1), mean=dataset.mean, std=dataset.std)
apply_fn = from_linen(network)
len(train), len(test)

# %% [markdown]
# ## Your own training step
#
# crest_jax never takes over your loop. A step is any function of a training state and a batch whose
# loss is the weighted mean of the batch's losses; the optimizer is any optax transformation.

# %%
STEPS = 300
optimizer = optax.sgd(optax.cosine_decay_schedule(0.05, STEPS), momentum=0.9)
evaluate = make_evaluate(apply_fn)


@jax.jit
def train_step(state, batch):
    params, opt_state = state

    def loss(params):
        logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
        return weighted_mean(cross_entropy(logits, batch.labels), batch.weights)

    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(params, updates), opt_state), value


def start(seed):
    params = network.init(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)), train=False)["params"]
    return params, optimizer.init(params)


def view(state):
    return state[0], {}  # parameters, and the state of a model that has none


# %% [markdown]
# ## A coreset from embeddings
#
# Train a little, embed 400 random images by the gradient of their loss with respect to the logits, and
# choose 40 weighted medoids of them. `select_coreset` is a pure function: give it any embeddings.

# %%
state = fit(
    stratified_batches(train, 64), train_step, start(0), key=jax.random.key(1), steps=50, view=view
)
rows = np.random.default_rng(0).choice(len(train), 400, replace=False)
embed = jax.jit(logit_gradients(apply_fn))
gradients, losses = embed_rows(embed, state[0], {}, train, rows)
labels = train.labels[rows]
coreset = select_coreset(gradients, 40, labels=labels)

picked = np.asarray(coreset.indices)
weights = np.asarray(coreset.weights)
assert len(set(picked.tolist())) == 40
assert weights.sum() == 400
full = gradients.mean(0)
weighted = (weights[:, None] * gradients[picked]).sum(0) / weights.sum()
chance = [
    np.linalg.norm(gradients[np.random.default_rng(i).choice(400, 40, replace=False)].mean(0) - full)
    for i in range(200)
]
print(
    f"distance of the mean gradient from that of all 400: {np.linalg.norm(weighted - full):.3f} for "
    f"the coreset, {np.mean(chance):.3f} for 40 random images"
)

# %% [markdown]
# The two leading directions of the gradients. Circles are the coreset, their area the number of images
# that each stands for: few of them stand for the many easy images near the middle.

# %%
centred = gradients - full
axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
x, y = (centred @ axes.T).T
figure, panel = plt.subplots(figsize=(6, 5), layout="constrained")
panel.scatter(x, y, c=labels, cmap="tab10", s=8, alpha=0.6)
panel.scatter(
    x[picked], y[picked], s=8 * weights, facecolors="none", edgecolors="black", label="coreset"
)
panel.set(xlabel="first principal direction", ylabel="second", title="logit gradients of 400 images")
panel.legend()
plt.show()

# %% [markdown]
# ## Train with CREST
#
# Every mini-batch is a coreset of a random subset four times as large, drawn just before its step: an
# image whose gradient is long is drawn more often and counts less, so that the sum stays right. `fit`
# uses only `init`, `refresh` and `next_batch`; your own loop can do the same. Neither hands the losses
# back here (`observe`, or `losses=`), so no learned example is left out.

# %%
config = CrestConfig.recommended(steps=STEPS, batch_size=64, num_examples=len(train))
methods = {
    "stratified random": stratified_batches(train, 64),
    "CREST": crest(apply_fn, train, config),
}
events, accuracy = [], {}
for name, selection in methods.items():
    trained = fit(
        selection,
        train_step,
        start(0),
        key=jax.random.key(2),
        steps=STEPS,
        view=view,
        on_event=events.append,
    )
    accuracy[name] = evaluate(*view(trained), test)["accuracy"]
    print(f"{name}: {100 * accuracy[name]:.1f} % of the test images right after {STEPS} steps")
print(f"CREST, until the rate drops: {events[-1].num_selected} coresets")
assert min(accuracy.values()) > 0.8
