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
# # What is picked
#
# You learn which images CREST trains on, what each stands for, and how that changes while the network
# learns. The data are the shipped images; it takes a minute on two cores.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from crest_jax import (
    ArraySource,
    CrestConfig,
    ExclusionConfig,
    crest,
    cross_entropy,
    fit,
    stratified_batches,
)
from crest_jax.flax import from_linen
from crest_jax.gradients import weighted_mean
from experiments import data
from experiments.models import build

dataset = data.load("fashion_mnist_12k")
train = ArraySource(dataset.train_inputs, dataset.train_labels)
network = build("mlp", 10, width=128, input_shape=(28, 28, 1), mean=dataset.mean, std=dataset.std)
apply_fn = from_linen(network)
STEPS = 400
optimizer = optax.sgd(optax.cosine_decay_schedule(0.05, STEPS), momentum=0.9)


@jax.jit
def train_step(state, batch):
    params, opt_state = state

    def loss(params):
        logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
        losses = cross_entropy(logits, batch.labels)
        return weighted_mean(losses, batch.weights), (losses, logits.argmax(1) == batch.labels)

    gradient, (losses, right) = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(params, updates), opt_state), (losses, right)


def start():
    params = network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)["params"]
    return params, optimizer.init(params)


def follow(selection):
    """Train, and keep rows, weights, losses and hits of every mini-batch."""
    kept, events, batches = [], [], []

    def noting(state):
        state, batch = selection.next_batch(state)
        batches.append(batch)
        return state, batch

    def on_step(step, metrics):
        del step
        kept.append([np.asarray(x) for x in (batches[-1].indices, batches[-1].weights, *metrics)])

    fit(
        selection._replace(next_batch=noting),
        train_step,
        start(),
        key=jax.random.key(1),
        steps=STEPS,
        view=lambda state: (state[0], {}),
        losses=lambda metrics: metrics[0],
        on_event=events.append,
        on_step=on_step,
    )
    return [np.stack(part) for part in zip(*kept, strict=True)], events


config = dataclasses.replace(
    CrestConfig.recommended(steps=STEPS, batch_size=64),
    select_from=None,
    select_until=None,  # coresets at all steps
    subset_size=256,
    exclusion=ExclusionConfig.recommended(window=50),
)
(rows, weights, losses, right), events = follow(crest(apply_fn, train, config))
(_, _, random_losses, random_right), _ = follow(stratified_batches(train, 64))
assert rows.shape == (STEPS, 64)
# Each coreset stands for its whole subset, in which a learned image counts for four.
assert (weights.sum(1) > 250).all()

# %% [markdown]
# ## Heavy and light picks
#
# A pick weighs one over the chance that it had, and its chance is proportional to the length of its
# gradient. In the last quarter: heavy picks are plain examples of their class, light ones are unusual.

# %%
late = slice(3 * STEPS // 4, STEPS)
flat_rows, flat_weights = rows[late].ravel(), weights[late].ravel()
figure, grid = plt.subplots(2, 10, figsize=(11, 2.8), layout="constrained")
for label in range(10):
    own = train.labels[flat_rows] == label
    order = np.argsort(-flat_weights[own], kind="stable")
    for axis, place in zip(grid[:, label], (order[0], order[-1]), strict=True):
        axis.imshow(dataset.train_inputs[flat_rows[own][place]].squeeze(), cmap="gray_r")
        axis.set(xticks=[], yticks=[], title=f"{flat_weights[own][place]:.1f}")
grid[0, 0].set_ylabel("heaviest")
grid[1, 0].set_ylabel("lightest")
plt.show()
heavy = losses[late].ravel()[flat_weights > np.quantile(flat_weights, 0.9)]
light = losses[late].ravel()[flat_weights < np.quantile(flat_weights, 0.1)]
print(f"mean loss: {heavy.mean():.3f} of the heaviest tenth, {light.mean():.3f} of the lightest tenth")
assert heavy.mean() < light.mean()

# %% [markdown]
# ## Harder and harder
#
# Losses of the picks, beside those of stratified batches, and the share of learned images left out.

# %%
block = STEPS // 20
place = block * (np.arange(20) + 0.5)


def by_block(values):
    return values.reshape(20, -1).mean(1)


figure, panels = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
panels[0].plot(place, by_block(losses), label="coresets")
panels[0].plot(place, by_block(random_losses), label="stratified")
panels[0].set(ylabel="mean loss of the picks", xlabel="step", yscale="log")
panels[1].plot(place, 100 * (1 - by_block(right)), label="coresets")
panels[1].plot(place, 100 * (1 - by_block(random_right)), label="stratified")
panels[1].set(ylabel="wrong among the picks, %", xlabel="step")
panels[2].step([e.step for e in events], [100 * e.excluded / len(train) for e in events], where="post")
panels[2].set(ylabel="excluded, %", xlabel="step")
for panel in panels[:2]:
    panel.legend()
plt.show()
ratio = by_block(losses) / by_block(random_losses)
assert ratio[10:].mean() > ratio[:5].mean(), "the picks get harder, relative to random ones"

# %% [markdown]
# ## How evenly the data are used

# %%
counts = np.bincount(rows.ravel(), minlength=len(train))
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
panel.bar(*np.unique(counts, return_counts=True))
panel.set(xlabel="times picked", ylabel="images")
plt.show()
most = np.sort(counts)[-len(counts) // 10 :].sum() / counts.sum()
print(
    f"{(counts > 0).mean():.0%} of the images were picked at least once, the most picked one "
    f"{counts.max()} times; a tenth of the images took {most:.0%} of all picks"
)
