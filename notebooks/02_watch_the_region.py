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
# # Watch the region
#
# You learn how the paper's CREST knows when its coresets are out of date; it takes a minute on
# two cores. That CREST keeps its coresets as long as a quadratic model of the loss around an *anchor*
# holds, and selects anew when the model is wrong: `CrestConfig(region=RegionConfig(...))`. Here one
# network trains on the shipped images and, at every step, the true loss of the probe rows is put beside
# what the model of the current region predicts. In real training this is looked at only when a check is
# due.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from crest_jax import ArraySource, CrestConfig, RegionConfig, crest, cross_entropy
from crest_jax.algorithm import predict, relative_error
from crest_jax.flax import from_linen
from crest_jax.gradients import hessian_vector_product, weighted_mean
from experiments import data
from experiments.models import build

dataset = data.load("fashion_mnist_12k")
train = ArraySource(dataset.train_inputs, dataset.train_labels)
network = build("mlp", 10, width=128, input_shape=(28, 28, 1), mean=dataset.mean, std=dataset.std)
apply_fn = from_linen(network)
STEPS = 240
rate = optax.piecewise_constant_schedule(0.05, {STEPS // 2: 0.1, 3 * STEPS // 4: 0.1})
optimizer = optax.sgd(rate, momentum=0.9)


@jax.jit
def train_step(params, opt_state, batch):
    def loss(params):
        logits, _ = apply_fn(params, {}, batch.inputs, train=True, rng=None)
        return weighted_mean(cross_entropy(logits, batch.labels), batch.weights)

    gradient = jax.grad(loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state


@jax.jit
def look(region, params, examples):
    """What the model predicts for the probe rows, their true loss, and the relative error."""

    def mean_loss(params):
        logits, _ = apply_fn(params, {}, examples.inputs, train=False, rng=None)
        return jnp.mean(cross_entropy(logits, examples.labels))

    delta = jax.tree.map(jnp.subtract, params, region.anchor)
    bend = optax.tree.vdot(delta, hessian_vector_product(mean_loss, region.anchor, delta))
    loss, predicted = mean_loss(params), predict(region, params, bend)
    return predicted, loss, relative_error(predicted, loss)


# %% [markdown]
# The state of the selector is an open tuple: the region's anchor and its gradient are in it, and the
# Hessian is taken along the way gone.

# %%
config = dataclasses.replace(
    CrestConfig.recommended(steps=STEPS, batch_size=64),
    select_from=None,
    select_until=None,  # coresets at all steps
    region=RegionConfig(probe_size=512),
    pause_above=1.0,
    picks="medoids",
    exclusion=None,
)
selection = crest(apply_fn, train, config)
params = network.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)["params"]
opt_state = optimizer.init(params)
state = selection.init(jax.random.key(1), params, {})
path, events = [], []
for step in range(STEPS):
    state, event = selection.refresh(state, params, {})
    if event is not None:
        events.append(event)
    predicted, loss, error = look(state.region, params, train.take(state.region.probe_indices))
    path.append((step, state.num_regions, float(predicted), float(loss), float(error)))
    state, batch = selection.next_batch(state)
    params, opt_state = train_step(params, opt_state, batch)
steps, regions, predicted, losses, errors = (np.array(column) for column in zip(*path, strict=True))
starts = [event.step for event in events if event.began_region]
assert all(errors[start] == 0 for start in starts), "at its anchor the model is exact"
print(f"{len(starts)} regions in {STEPS} steps, {sum(e.rho is not None for e in events)} checks")

# %% [markdown]
# ## The model beside the truth
#
# Grey lines are anchors. While the rate is high (left half) the model goes wrong within a few steps;
# after the drop (a tenth of the rate) it holds for long.

# %%
figure, panels = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
panels[0].plot(steps, losses, color="black", lw=1.2, label="loss of the probe rows")
for number in np.unique(regions):
    inside = regions == number
    panels[0].plot(
        steps[inside], predicted[inside], color="C3", lw=1.2, label="model" if number == 1 else None
    )
panels[0].set(ylabel="loss", yscale="log", ylim=(0.8 * losses.min(), 1.3 * losses.max()))
panels[0].legend()
panels[1].semilogy(steps, np.maximum(errors, 1e-4), color="C0", lw=1)
panels[1].axhline(config.region.tau, color="black", ls="--", lw=0.8, label="tau")
panels[1].set(ylabel="relative error", xlabel="step")
panels[1].legend()
for panel in panels:
    for start in starts:
        panel.axvline(start, color="0.85", lw=0.8, zorder=0)
    panel.axvline(STEPS // 2, color="C2", lw=1)
plt.show()

# %% [markdown]
# ## How long a region lasts

# %%
lengths = np.diff([*starts, STEPS])
half = np.array(starts) < STEPS // 2
for when, part in (("before", lengths[half]), ("after", lengths[~half])):
    print(f"{len(part)} regions begin {when} the rate drops: {part} steps long")
assert (~half).sum() < half.sum()
norms = [event.curvature_norm for event in events if event.began_region]
figure, panels = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
panels[0].step(starts, lengths, where="post")
panels[0].set(xlabel="step", ylabel="length of the region, steps")
panels[1].semilogy(starts, norms, "o-", ms=3)
panels[1].set(xlabel="step", ylabel="norm of the curvature")
plt.show()
