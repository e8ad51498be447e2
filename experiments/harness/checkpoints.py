"""Checkpoints of a whole run with Orbax: training state, selection state, counters."""

import contextlib
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from crest_jax.data.devices import gather
from experiments.data.dataset import one_line
from experiments.harness.cli import UserError
from experiments.harness.distributed import leads, wait_for_all

KEPT = 3
FOLDER = "checkpoints"
DAMAGED = "damaged_checkpoints"
_LOGGERS = ("absl", "asyncio")  # of what Orbax's threads say about errors


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's own lines about damaged files back: the error that it raises is told in one."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _but_closed_loops(told: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a hook for errors in callbacks that drops those of writes after one that failed."""

    def tell(trouble: Any) -> None:
        error = trouble.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            told(trouble)

    return tell


def newest_checkpoint(folder: Path) -> int | None:
    """Return the step of the newest checkpoint that is whole in a run folder, or None."""
    found = (folder / FOLDER).glob("*")  # Orbax gives those half-written other names
    return max((int(path.name) for path in found if path.name.isdigit()), default=None)


class Checkpoints:
    """The checkpoints in a run folder, the newest ``KEPT``; one that is cut off leaves those before it.

    They are written in the background, each whole or not at all, with a hash of their values.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Open (and create) ``folder / "checkpoints"``; ``say`` tells of damaged ones."""
        self.folder = (folder / FOLDER).absolute()
        self._say = say
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        self._hook = sys.unraisablehook
        self._mute()
        with _quiet():
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._unmute()  # not where Ctrl-C came meanwhile: its threads may speak until the end

    def __enter__(self) -> "Checkpoints":
        """Keep back what Orbax's threads log about errors: they are told in one sentence."""
        self._mute()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Wait for what is being written, and close; a second error does not hide the first."""
        try:
            with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
                self.wait()
        finally:
            self._manager.close()
            if error is None:  # else its threads may speak until the end
                self._unmute()

    def _mute(self) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.unraisablehook = _but_closed_loops(self._hook)

    def _unmute(self) -> None:
        sys.unraisablehook = self._hook
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint that is written or being written, or None."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, notes: dict[str, Any]) -> None:
        """Begin to write one checkpoint: a tree of arrays and Python numbers, and JSON notes.

        Raises:
          UserError: when it, or the one before it, cannot be written.
        """
        state = ocp.args.StandardSave(arrays)
        values = ocp.args.JsonSave({**notes, "sha256": sha256(arrays)})
        with self._written(step):
            self._manager.save(step, args=ocp.args.Composite(state=state, notes=values))

    def wait(self) -> None:
        """Wait for what is being written.

        Raises:
          UserError: when it cannot be written.
        """
        with self._written(None):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _written(self, step: int | None) -> Iterator[None]:
        try:
            with _quiet():
                yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            kept = [kept for kept in self._manager.all_steps() if kept != step]
            good = f"the last good one is of step {max(kept)}" if kept else "there is none before it"
            raise UserError(
                f"a checkpoint cannot be written to {self.folder} ({type(error).__name__}: "
                f"{one_line(error)[:160]}) but the run needs it to be resumed ({good}); make room or "
                "mend the folder, then go on with --resume."
            ) from error

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Return the newest checkpoint that is whole, typed like ``like``, or None without one.

        Damaged ones are set aside, to ``damaged_checkpoints``, and told.

        Raises:
          UserError: when all are damaged or belong to another program.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        broken = []
        for step in steps:
            found, what = None, ""
            try:
                found = self._read(step, like)
            except PermissionError as error:
                raise UserError(
                    f"the checkpoint of step {step} in {self.folder} cannot be read ({error.strerror}) "
                    "but must be readable; mend its permissions."
                ) from error
            except Exception as error:  # Orbax raises many kinds for damaged files
                what = f"{type(error).__name__}: {one_line(error)[:120]}"
            if not np.concatenate(gather(np.array([found is not None]))).all():
                broken.append((step, what or "another process cannot read it"))
                continue
            assert found is not None
            for bad, what in broken:
                aside = self._set_aside(bad)
                self._say(
                    f"the checkpoint of step {bad} is damaged ({what}) and was moved to {aside}; going "
                    f"on from the one before."
                )
            return found
        if broken:
            raise UserError(
                f"no checkpoint in {self.folder} can be read (that of step {broken[0][0]}: "
                f"{broken[0][1]}) but one must be whole to go on; start again with another --out."
            )
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        parts = {
            "state": ocp.args.StandardRestore(jax.tree.map(_abstract, like)),
            "notes": ocp.args.JsonRestore(),
        }
        with _quiet():
            found = self._manager.restore(step, args=ocp.args.Composite(**parts))
        arrays = jax.tree.map(_typed, like, found["state"])
        notes = dict(found["notes"])
        if notes.pop("sha256") != sha256(arrays):
            raise ValueError("its values are not those that were saved")
        return arrays, notes

    def _set_aside(self, step: int) -> Path:
        aside = self.folder.parent / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        number = 0
        while aside.exists():
            number += 1
            aside = aside.with_name(f"{step}-{number}")
        if leads():
            (self.folder / str(step)).rename(aside)
        wait_for_all(f"the checkpoint of step {step} is set aside")
        self._manager.reload()
        return aside


def sha256(tree: Any) -> str:
    """Return a hash of all values of a tree of arrays and Python numbers, with their paths.

    >>> sha256({"a": 1}) == sha256({"a": 1}), sha256({"a": 1}) == sha256({"a": 2})
    (True, False)
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _abstract(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _typed(like: Any, found: Any) -> Any:
    return found if isinstance(like, jax.Array) else type(like)(found)
