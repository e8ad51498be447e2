"""Checkpoints of a whole run with Orbax: training state, selection state, counters."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.config import UserError

KEPT = 2


class Checkpoints:
    """The checkpoints in a run folder; a save that is cut off leaves the one before it."""

    def __init__(self, folder: Path) -> None:
        """Open (and create) ``folder / "checkpoints"``."""
        self.folder = (folder / "checkpoints").absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
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
            found = self._manager.restore(step, args=ocp.args.Composite(**parts))
        except Exception as error:  # Orbax raises many kinds for damaged files
            raise UserError(
                f"the checkpoint {self.folder / str(step)} cannot be read "
                f"({type(error).__name__}: {str(error).splitlines()[0][:120]}) but must be whole; "
                "delete that folder to go on from the one before, or start again with another --out."
            ) from error
        return jax.tree.map(_typed, like, found["state"]), dict(found["notes"])

    def close(self) -> None:
        """Wait for what is being written."""
        self._manager.close()


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _typed(like: Any, found: Any) -> Any:
    return found if isinstance(like, jax.Array) else type(like)(found)
