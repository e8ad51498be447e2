"""Timers by phase, with compilation set apart."""

import time
from collections.abc import Callable
from typing import Any

import jax

from crest_jax.diagnostics.clock import compile_clock

TRAINING = ("step", "selection", "curvature", "check")
PHASES = (*TRAINING, "evaluation", "checkpoint", "init", "compile", "other")


class PhaseTimer:
    """Adds up the seconds of each phase.

    An instance is a ``PhaseFn``: ``timer(name, function, *args)`` returns ``function(*args)`` and waits
    for the device, so that work counts where it is done. That is for phases at which the host waits all
    the same; steps run ``ahead``, and are waited for before such a phase begins.
    """

    def __init__(self) -> None:
        """Start from zero."""
        self._clock = compile_clock()
        self.restart({})

    def restart(self, seconds: dict[str, float]) -> None:
        """Start from zero, or go on from earlier ``seconds``."""
        self.seconds = dict.fromkeys(PHASES, 0.0) | seconds
        self.start_clock()

    def start_clock(self) -> None:
        """Count the time outside all phases, as "other", from now on."""
        self._began = time.perf_counter()
        self._start = self._began - sum(self.seconds.values())
        self._compiled_inside = 0.0  # since then

    def totals(self) -> dict[str, float]:
        """Return the seconds of all phases; with "other" they add up to the wall time.

        Compilation counts as such also where it is outside all phases.
        """
        now = time.perf_counter()
        outside = max(0.0, self._clock.between(self._began, now) - self._compiled_inside)
        compiling = self.seconds["compile"] + outside
        inside = sum(seconds for name, seconds in self.seconds.items() if name != "other")
        other = now - self._start - inside - outside
        return self.seconds | {"compile": compiling, "other": max(0.0, other)}

    def __call__(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run and time one phase, and wait for its results."""
        return self.ahead(name, lambda: jax.block_until_ready(function(*args)))

    def ahead(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run one phase, and time what the host does; the device goes on by itself."""
        start = time.perf_counter()
        result = function(*args)
        end = time.perf_counter()
        compiling = self._clock.between(start, end)
        self.seconds["compile"] += compiling
        self._compiled_inside += compiling
        self.seconds[name] += end - start - compiling
        return result

    @property
    def training(self) -> float:
        """Seconds of everything that training needs: steps, selection, curvature, checks, the rest.

        Without evaluation, checkpoints, initialisation and compilation.
        """
        totals = self.totals()
        return sum(totals[name] for name in (*TRAINING, "other"))
