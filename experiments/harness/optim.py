"""Learning-rate schedules compressed to a budget of steps, and the optimizers that use them."""

import math
from typing import Literal

import optax

from experiments.harness.options import DROPS


def schedule(
    kind: Literal["step", "cosine", "linear"],
    peak: float,
    steps: int,
    *,
    warmup_fraction: float = 0.1,
    drops: tuple[float, ...] = DROPS,
    drop_factor: float = 0.1,
) -> optax.Schedule:
    """Return the learning rate of each of ``steps`` steps, numbered from 0.

    The first ``W = round(warmup_fraction * steps)`` steps warm up, step ``t`` at the rate
    ``peak * (t + 1) / (W + 1)``, so that no step is spent at rate 0. Then ``"step"`` gives ``peak``,
    times ``drop_factor`` from step ``round(share * steps)`` on for every share in ``drops``,
    ``"linear"`` gives ``peak * (steps - t) / (steps - W)``, and ``"cosine"`` gives
    ``peak * (1 + cos(pi * (t - W) / (steps - W))) / 2``. All positions are shares of ``steps``: a
    smaller budget compresses the whole schedule.

    Raises:
        ValueError: if a number is out of its range.

    >>> rate = schedule("step", 0.1, 320)
    >>> [round(float(rate(t)), 4) for t in (0, 31, 32, 159, 160, 240)]
    [0.003, 0.097, 0.1, 0.1, 0.01, 0.001]
    """
    if kind not in ("step", "cosine", "linear"):
        raise ValueError(f"kind is {kind!r}, but must be 'step', 'cosine' or 'linear'.")
    _check("peak", peak, 0.0, math.inf)
    _check("steps", steps, 0.0, math.inf)
    _check("warmup_fraction", warmup_fraction, 0.0, 1.0, low_allowed=True)
    warmup = round(warmup_fraction * steps)
    if kind == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif kind == "linear":
        after = optax.linear_schedule(peak, 0.0, max(steps - warmup, 1))
    else:
        _check("drop_factor", drop_factor, 0.0, 1.0)
        for share in drops:
            _check("drops entry", share, warmup_fraction, 1.0)
        if list(drops) != sorted(set(drops)):
            raise ValueError(f"drops is {drops}, but must rise: sort it, each share once.")
        boundaries: dict[int, float] = {}
        for share in drops:  # two drops can fall on one step of a small budget
            step = round(share * steps) - warmup
            boundaries[step] = boundaries.get(step, 1.0) * drop_factor
        after = optax.piecewise_constant_schedule(peak, boundaries)
    if warmup == 0:
        return after
    first = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([first, after], [warmup])


def optimizer(
    kind: Literal["sgd", "adamw"],
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Return SGD with momentum, or AdamW with ``momentum`` as its ``b1``.

    SGD decays weights as PyTorch does: ``weight_decay * params`` is added to the gradient before
    momentum; AdamW decays them apart from the gradient. Both decay every parameter.

    Raises:
        ValueError: if a number is out of its range, or Nesterov momentum is asked of no momentum.

    >>> import jax.numpy as jnp
    >>> tx = optimizer("sgd", 0.5, momentum=0.0, weight_decay=0.1)
    >>> updates, _ = tx.update(jnp.array(1.0), tx.init(jnp.array(2.0)), jnp.array(2.0))
    >>> round(float(updates), 4)  # -0.5 * (1 + 0.1 * 2)
    -0.6
    """
    if kind not in ("sgd", "adamw"):
        raise ValueError(f"kind is {kind!r}, but must be 'sgd' or 'adamw'.")
    _check("momentum", momentum, 0.0, 1.0, low_allowed=True, high_allowed=False)
    _check("weight_decay", weight_decay, 0.0, math.inf, low_allowed=True)
    if nesterov and momentum == 0.0:
        raise ValueError("nesterov is True with momentum 0, but it needs momentum: pass 0.9, say.")
    if kind == "adamw":
        return optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay, nesterov=nesterov)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov),
    )


def _check(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    low_allowed: bool = False,
    high_allowed: bool = True,
) -> None:
    """Raise ValueError unless ``value`` is finite and between ``low`` and ``high``."""
    above = value >= low if low_allowed else value > low
    below = value <= high if high_allowed else value < high
    if not (math.isfinite(value) and above and below):
        lower = f"{'at least' if low_allowed else 'above'} {low:g}"
        upper = f"{'at most' if high_allowed else 'below'} {high:g}"
        raise ValueError(
            f"{name} is {value}, but must be finite, {lower} and {upper}: pass such a value."
        )
