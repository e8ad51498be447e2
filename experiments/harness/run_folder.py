"""The folder that holds one run: its options, events and results, and its lock."""

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from flax import serialization

from experiments.config import TrainConfig
from experiments.data.dataset import one_line
from experiments.harness.cli import UserError
from experiments.harness.inputs import Inputs

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]


NETWORK = "network.msgpack"
INPUTS = "inputs.json"


def commit_of(root: Path) -> str | None:
    """Return the commit checked out at ``root``, with a plus sign if code differs from it, or None."""
    code = ("--", "crest_jax", "experiments", ":!experiments/results")
    try:
        found = [
            subprocess.run(
                ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", *code))
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return found[0] + ("+" if found[1] else "")


COMMIT = commit_of(Path(__file__).parents[2])  # of the code that runs, whatever is committed later


LOCK = ".lock"
BEGUN = ".config-"  # first letters of the options while they are written
LEFTOVERS = {".probe", "config.tmp", LOCK}  # of a run that was killed while it began


def writable_folder(path: Path) -> None:
    """Make a folder, where there is none, and prove that it can be written, or raise ``UserError``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another run may look, too
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}) but must be a folder you can write to; "
            "choose another or mend its permissions."
        ) from error


def new_folder(path: Path) -> None:
    """Make a new folder for results, or raise ``UserError``."""
    writable_folder(path)
    names = {found.name for found in path.iterdir()} - LEFTOVERS
    if [name for name in names if not name.startswith(BEGUN)]:
        raise UserError(
            f"--out {path} is not empty and holds no run but must be a new or empty folder; choose "
            "another."
        )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class Lock:
    """A file that one process holds, until it lets go or ends, even when it is killed.

    Where the file system has no locks, it says so and holds nothing.
    """

    def __init__(self, path: Path, what: str, say: Callable[[str], None] = _to_stderr) -> None:
        """Take the lock ``path`` of ``what``, which a sentence can begin with.

        Raises:
          UserError: where another process holds it, or the file cannot be made.
        """
        self._path = path
        self._file: IO[str] | None = None
        try:
            while self._file is None:
                self._file = self._taken(what, say)
        except OSError as error:
            raise UserError(
                f"{what} cannot be written ({error.strerror}) but must be a place you can write to; "
                "choose another or mend its permissions."
            ) from error

    def _taken(self, what: str, say: Callable[[str], None]) -> IO[str] | None:
        """Open and lock the file; None where it was another's, who has taken it away since."""
        file = self._path.open("a")
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"{what} is in use by another run but only one may write there at a time; wait for "
                "its end or choose another place."
            ) from error
        except OSError as error:
            say(f"{what} cannot be locked ({error}); start nothing else there until this ends.")
            return file
        try:
            same = os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            same = False
        if same:
            return file
        file.close()
        return None

    def __enter__(self) -> "Lock":
        """Hold it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the file away, while it is held, and let go."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._file.close()
        self._file = None


@contextlib.contextmanager
def held_folder(path: Path) -> Iterator[None]:
    """Make a folder of results, where there is none, and keep others from writing there.

    Raises:
      UserError: where it cannot be written, or another program writes there.
    """
    writable_folder(path)
    with Lock(path / LOCK, f"--out {path}"):
        yield


@contextlib.contextmanager
def held_new_folder(path: Path) -> Iterator[None]:
    """Make a new folder for results, and keep others from writing there; see ``held_folder``."""
    with held_folder(path):
        new_folder(path)
        yield


@contextlib.contextmanager
def held_file(path: Path) -> Iterator[None]:
    """Make the folder of a file of results, and keep others from writing that file.

    Raises:
      UserError: where it cannot be written, or another program is to write it.
    """
    writable_folder(path.parent)
    with Lock(path.with_name(f".{path.name}{LOCK}"), f"--out {path}"):
        yield


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


def open_folder(
    config: TrainConfig, say: Callable[[str], None] = _to_stderr, inputs: Inputs | None = None
) -> Lock:
    """Make the run folder and write its options, or prove that the one there can be written.

    Args:
      config: the options.
      say: told where the folder cannot be locked.
      inputs: what the network takes, for a run on images or tables.

    Returns:
      The lock of the folder, to be held to the end of the run.

    Raises:
      UserError: where it cannot be written, another run is in it, or one has been since
        ``finished_run`` looked; or the data have changed since it began.
    """
    writable_folder(config.out)
    lock = Lock(config.out / LOCK, f"--out {config.out}", say)
    try:
        if finished_run(config) is not None:
            raise UserError(
                f"--out {config.out} was finished by another run just now but must be this one's to "
                "write; look at its results or choose another folder."
            )
        path = config.out / "config.json"
        if not path.exists():
            new_folder(config.out)
            _create_json(path, config.as_json())
        if inputs is not None:
            check_inputs(config.out, inputs)
            write_json(config.out / INPUTS, inputs.as_json())
    except BaseException:
        lock.__exit__()
        raise
    return lock


def read_inputs(folder: Path) -> Inputs | None:
    """Return what the network of a run takes; None where the run on it has not begun.

    Raises:
      UserError: when the file is damaged.
    """
    path = folder / INPUTS
    if not path.is_file():
        return None
    try:
        return Inputs.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:120]}) but must be as the run wrote it; train "
            "again."
        ) from error


def check_inputs(folder: Path, inputs: Inputs, remedy: str = "choose another --out") -> None:
    """Raise ``UserError`` when a run was begun on other data than those that were read now.

    Args:
      folder: of the run; nothing is checked where it has none yet.
      inputs: of the data that were read now.
      remedy: what to do, beside putting the data back.
    """
    before = read_inputs(folder)
    if before is None:
        return
    if inputs.sha256 is not None:  # says more than moments, which may differ by rounding
        before = before._replace(mean=inputs.mean, std=inputs.std)
    if before != inputs:
        raise UserError(
            f"{folder} holds a run on other data than --data.dir holds now, rows or classes having "
            f"changed; put them back as they were, or {remedy}."
        )


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
    _write_atomically(path, _json_text(values))


def _json_text(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()


def _create_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole, or raise ``UserError`` where it is there already.

    Of two processes that come here at once only one goes on, also where there are no locks.
    """
    text, temporary = _json_text(values), path.with_name(f"{BEGUN}{uuid.uuid4().hex}")
    temporary.write_bytes(text)
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # this file system has no links
            with path.open("xb") as file:
                file.write(text)
    except FileExistsError as error:
        raise UserError(
            f"--out {path.parent} was taken by another run just now but must be this one's to write; "
            "choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
