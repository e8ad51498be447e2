"""A small model in plain JAX and NumPy arithmetic that shares no code with the library."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np


def init_mlp(seed, *sizes):
    """Random layers [(W [i, o], b [o]), ...] from NumPy, float32."""
    rng = np.random.default_rng(seed)
    return [
        (
            jnp.asarray(rng.normal(0, 1 / np.sqrt(i), (i, o)), jnp.float32),
            jnp.asarray(rng.normal(0, 0.1, o), jnp.float32),
        )
        for i, o in pairwise(sizes)
    ]


def mlp_features(params, model_state, inputs):
    for weight, bias in params[:-1]:
        inputs = jnp.tanh(inputs @ weight + bias[None, :])
    weight, bias = params[-1]
    return inputs, inputs @ weight + bias[None, :]


def mlp(params, model_state, inputs, *, train, rng):
    """An ``ApplyFn``; in train mode the logits are wrong on purpose, so that a mix-up shows."""
    logits = mlp_features(params, model_state, inputs)[1]
    return (logits + 1000.0 * jnp.arange(logits.shape[1])[None, :] if train else logits), model_state


def numpy_mlp(params, inputs):
    """The logits in float64."""
    values = np.asarray(inputs, np.float64)
    for weight, bias in params[:-1]:
        values = np.tanh(values @ np.asarray(weight, np.float64) + np.asarray(bias, np.float64))
    weight, bias = params[-1]
    return values @ np.asarray(weight, np.float64) + np.asarray(bias, np.float64)


def numpy_softmax(logits):
    logits = np.asarray(logits, np.float64)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def numpy_cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=1)
    log_sums = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return log_sums - logits[np.arange(len(labels)), labels]


def numpy_distances(points):
    """Euclidean distances [n, n] in float64, from differences."""
    points = np.asarray(points, np.float64).reshape(len(points), -1)
    return np.sqrt(((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2))


def facility_location(similarities, chosen, classes=None):
    """``sum_i max_{j in S, same class} s_ij`` in float64, 0 where a class has no pick."""
    similarities = np.asarray(similarities, np.float64)
    classes = np.zeros(len(similarities), int) if classes is None else np.asarray(classes)
    total = 0.0
    for i in range(len(similarities)):
        total += max((similarities[i, j] for j in chosen if classes[j] == classes[i]), default=0.0)
    return total


def numpy_greedy(similarities, classes, quotas):
    """One greedy run per class, the lowest row on a tie; returns rows class by class."""
    similarities = np.asarray(similarities, np.float64)
    picks = []
    for c, quota in enumerate(quotas):
        members = [i for i in range(len(classes)) if classes[i] == c]
        covered = dict.fromkeys(members, 0.0)
        free = list(members)
        for _ in range(quota):
            gains = [sum(max(similarities[i, j] - covered[i], 0.0) for i in members) for j in free]
            pick = free.pop(int(np.argmax(gains)))
            covered = {i: max(covered[i], similarities[i, pick]) for i in members}
            picks.append(pick)
    return picks


def numpy_coverage(similarities, classes, picks):
    """Rows that each pick stands for, by a plain loop over rows."""
    similarities, picks = np.asarray(similarities, np.float64), list(picks)
    counts = np.zeros(len(picks))
    for i in range(len(similarities)):
        if i in picks:
            counts[picks.index(i)] += 1
            continue
        own = [k for k, j in enumerate(picks) if classes[j] == classes[i]]
        slots = own or range(len(picks))
        counts[max(slots, key=lambda k: (similarities[i, picks[k]], -k))] += 1
    return counts
