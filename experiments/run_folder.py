"""The folder that holds one run: its options, events and results."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from experiments.config import TrainConfig, UserError
from experiments.data.dataset import one_line

NETWORK = "network.msgpack"


def commit() -> str | None:
    """Return the checked-out commit, with a plus sign if the tree differs from it, or None."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(
                ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "."))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("+" if found[1] else "")


LEFTOVERS = {".probe", "config.tmp"}  # of a run that was killed while it began


def writable_folder(path: Path) -> None:
    """Make a folder, where there is none, and prove that it can be written, or raise ``UserError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}) but must be a folder you can write to; "
            "choose another or mend its permissions."
        ) from error


def new_folder(path: Path) -> None:
    """Make a new folder for results, or raise ``UserError``."""
    writable_folder(path)
    if {found.name for found in path.iterdir()} - LEFTOVERS:
        raise UserError(
            f"--out {path} is not empty and holds no run but must be a new or empty folder; choose "
            "another."
        )


def finished_run(config: TrainConfig) -> dict[str, Any] | None:
    """Check the run folder, changing nothing; return the metrics of a finished run.

    Raises:
      UserError: when the folder holds a run that this one would overwrite or cannot go on with.
    """
    path = config.out / "config.json"
    try:
        found = path.exists()
    except OSError as error:
        raise UserError(
            f"--out {config.out} cannot be read ({error.strerror}) but must be a folder you can write "
            "to; choose another or mend its permissions."
        ) from error
    if not found:
        return None
    if not config.resume:
        raise UserError(
            f"--out {config.out} already holds a run, which would be lost; pass --resume to go on "
            "with it or choose another folder."
        )
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        metrics_path = config.out / "metrics.json"
        finished = json.loads(metrics_path.read_text()) if metrics_path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{config.out} holds a file that is no JSON ({error}) but must be a run folder as the run "
            "left it; choose another --out."
        ) from error
    changed = _difference(old, config.as_json())
    if changed:
        name, before, now = changed
        raise UserError(
            f"--resume was asked with {name} = {now!r} but the run in {config.out} has {before!r}; "
            "pass the same options, or another --out."
        )
    return finished


def open_folder(config: TrainConfig) -> None:
    """Make the run folder and write its options, or prove that the one there can be written."""
    path = config.out / "config.json"
    if path.exists():
        writable_folder(config.out)
    else:
        new_folder(config.out)
        write_json(path, config.as_json())


def _difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the first option in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), key)
            if found:
                return found
        return None
    return None if old == new else (name, old, new)


def write_network(folder: Path, params: Any, model_state: Any) -> None:
    """Write the trained network, ``network.msgpack``, whole or not at all."""
    values = {"params": params, "model_state": model_state}
    _write_atomically(folder / NETWORK, serialization.to_bytes(values))


def read_network(folder: Path, params: Any, model_state: Any) -> tuple[Any, Any]:
    """Read a trained network, shaped like the arguments.

    Raises:
      UserError: when it is absent, damaged, or of another network.
    """
    path = folder / NETWORK
    like = {"params": params, "model_state": model_state}
    try:
        found = serialization.from_bytes(like, path.read_bytes())
        shapes = [jax.tree.map(np.shape, tree) for tree in (like, found)]
        if shapes[0] != shapes[1]:
            raise ValueError("it has other shapes")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {NETWORK} but must be a finished run; finish it."
        ) from error
    except Exception as error:  # msgpack and flax raise many kinds for damaged files
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:120]}) but must be as the run wrote it; train "
            "again."
        ) from error
    return found["params"], found["model_state"]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    _write_atomically(path, text.encode())


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def drop_events_after(path: Path, step: int) -> None:
    """Drop the events that a killed run wrote after its last checkpoint, half a line included."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        # An evaluation belongs to the step before it, a selection to the step after it.
        if row["step"] + (row["kind"] == "selection") <= step:
            kept.append(line)
    _write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
