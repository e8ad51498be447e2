"""Checkpoints of a whole run with Orbax: training state, selection state, counters."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.config import UserError
from experiments.data.dataset import one_line

KEPT = 2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's own lines about damaged files back: the error that it raises is told in one."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


class Checkpoints:
    """The checkpoints in a run folder; a save that is cut off leaves the one before it."""

    def __init__(self, folder: Path) -> None:
        """Open (and create) ``folder / "checkpoints"``."""
        self.folder = (folder / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, arrays: Any, notes: dict[str, Any]) -> None:
        """Write one checkpoint: a tree of arrays and Python numbers, and JSON notes."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes)
            ),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Return the newest checkpoint, shaped and typed like ``like``, or None without one.

        Raises:
          UserError: when the checkpoint is damaged or belongs to another program.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(_abstract, like)
        try:
            parts = {"state": ocp.args.StandardRestore(abstract), "notes": ocp.args.JsonRestore()}
            with _quiet():
                found = self._manager.restore(step, args=ocp.args.Composite(**parts))
            return jax.tree.map(_typed, like, found["state"]), dict(found["notes"])
        except Exception as error:  # Orbax raises many kinds for damaged files
            raise UserError(
                f"the checkpoint {self.folder / str(step)} cannot be read ({type(error).__name__}: "
                f"{one_line(error)[:120]}) but must be whole; delete that folder to go on from the one "
                "before, or start again with another --out."
            ) from error

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _typed(like: Any, found: Any) -> Any:
    return found if isinstance(like, jax.Array) else type(like)(found)
