"""Seconds that XLA spends compiling."""

import functools
import time

import jax


class CompileClock:
    """Seconds that JAX has spent tracing, lowering and compiling, nested traces counted once.

    Example:
      >>> import jax.numpy as jnp
      >>> clock, start = CompileClock(), time.perf_counter()
      >>> _ = jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(3))
      >>> 0 < clock.between(start, time.perf_counter()) < time.perf_counter() - start
      True
    """

    def __init__(self) -> None:
        """Start to listen."""
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if not event.startswith("/jax/core/compile"):
            return
        end = time.perf_counter()
        start = end - duration_secs
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((start, end))

    def between(self, start: float, end: float) -> float:
        """Return the seconds of compilation that ended between two readings of ``perf_counter``."""
        total = 0.0
        for first, last in reversed(self._spans):
            if last < start:
                break
            total += min(last, end) - max(first, start)
        return total


@functools.cache
def compile_clock() -> CompileClock:
    """Return the clock of this process, which listens from the first call on.

    Example:
      >>> compile_clock() is compile_clock()
      True
    """
    return CompileClock()
