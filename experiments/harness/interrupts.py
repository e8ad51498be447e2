"""What ends a long run from outside, and how it ends well: signals, and machines that are silent."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal asked the run to stop, and its checkpoint is written."""

    def __init__(self, number: int, step: int) -> None:
        """Say which signal it was, and after which step the run stopped."""
        super().__init__(number, step)
        self.number, self.step = number, step

    def __str__(self) -> str:
        """Say both in words."""
        name = signal.Signals(self.number).name
        return f"stopped by {name} after step {self.step}, of which a checkpoint is written"


class Asked:
    """The signal that asked to stop, or None."""

    number: int | None = None


EARLY = Asked()  # a Ctrl-C before anything listened


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Note a Ctrl-C beside raising it: Python loses what is raised in a destructor or a callback."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        EARLY.number = number
        signal.default_int_handler(number, frame)

    EARLY.number = None
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        EARLY.number = None


@contextlib.contextmanager
def listening() -> Iterator[Asked]:
    """Turn the first SIGINT or SIGTERM into a wish that the loop reads; a second one ends at once.

    In a thread that may not handle signals nothing is caught.
    """
    asked = Asked()
    asked.number = EARLY.number
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        asked.number = number
        for caught, handler in before.items():
            signal.signal(caught, handler)

    before = {number: signal.getsignal(number) for number in CAUGHT}
    for number in CAUGHT:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


AGREE = 10  # steps after which several processes ask each other whether one was told to stop


def asked_by_any(asked: Asked, step: int) -> bool:
    """Return whether this process or, at every tenth step, another one was asked to stop.

    All processes must call it at the same steps, and get the same answer.
    """
    if jax.process_count() == 1:
        return asked.number is not None
    if step % AGREE:
        return False
    told = multihost_utils.process_allgather(np.array(asked.number is not None))
    return bool(told.any())


class Watchdog:
    """Ends the process when no step was finished for so long: another process may have gone."""

    def __init__(self, seconds: float | None) -> None:
        """Watch from now on; None watches nothing."""
        self.seconds = seconds
        self._seen = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> "Watchdog":
        """Begin to watch."""
        if self.seconds is not None:
            threading.Thread(target=self._watch, args=(self.seconds,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._done.set()

    def alive(self) -> None:
        """Note that a step was finished."""
        self._seen = time.monotonic()

    def _watch(self, seconds: float) -> None:
        while not self._done.wait(min(1.0, seconds / 4)):
            waited = time.monotonic() - self._seen
            if waited > seconds:
                print(
                    f"error: no step was finished for {waited:.0f} seconds but "
                    f"--machine.step-timeout allows {seconds:g}; another process or device has stopped "
                    "answering: start all again with --resume.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
