"""The folder that holds one run: its options, events and results."""

import json
import subprocess
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig, UserError


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


def new_folder(path: Path) -> None:
    """Make a folder for results and prove that it can be written, or raise ``UserError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
        occupied = any(path.iterdir())
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}) but must be a folder you can write to; "
            "choose another or mend its permissions."
        ) from error
    if occupied:
        raise UserError(
            f"--out {path} is not empty and holds no run but must be a new or empty folder; choose "
            "another."
        )


def open_folder(config: TrainConfig) -> dict[str, Any] | None:
    """Make or check the run folder; return the metrics of a finished run that is resumed."""
    path = config.out / "config.json"
    options = config.as_json()
    if not path.exists():
        new_folder(config.out)
        write_json(path, options)
        return None
    if not config.resume:
        raise UserError(
            f"--out {config.out} already holds a run, which would be lost; pass --resume to go on "
            "with it or choose another folder."
        )
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        metrics_path = config.out / "metrics.json"
        finished = json.loads(metrics_path.read_text()) if metrics_path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{config.out} holds a file that is no JSON ({error}) but must be a run folder as the run "
            "left it; choose another --out."
        ) from error
    changed = _difference(before, options)
    if changed:
        name, old, new = changed
        raise UserError(
            f"--resume was asked with {name} = {new!r} but the run in {config.out} has {old!r}; pass "
            "the same options, or another --out."
        )
    return finished


def _difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Return the first option in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), key)
            if found:
                return found
        return None
    return None if old == new else (name, old, new)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
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
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
