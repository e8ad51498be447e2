"""What all command lines share: sentences instead of tracebacks."""

import contextlib
import dataclasses
import errno
import io
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from crest_jax import CrestConfig, ExclusionConfig, RegionConfig
from experiments import data
from experiments.harness.interrupts import Stopped, remembering

T = TypeVar("T")


class UserError(Exception):
    """A mistake of the user's, told in one sentence."""


# Settings of the library as the command line has them, where the words differ.
OPTIONS = {
    "batch_size": "batch-size",
    "num_examples": "dataset",
    "nonfinite": "run.nonfinite",
    "select_until": "crest.select-span",
    **{
        field.name: f"crest.region.{field.name.replace('_', '-')}"
        for field in dataclasses.fields(RegionConfig)
    },
    **{
        field.name: f"crest.exclusion.{field.name.replace('_', '-')}"
        for field in dataclasses.fields(ExclusionConfig)
    },
}
SETTINGS = {field.name for field in dataclasses.fields(CrestConfig)} | OPTIONS.keys()


def as_options(sentence: str) -> str:
    """Return a sentence of the library with CREST's settings named as on the command line.

    >>> as_options("tau is -1.0 but must be positive; raise tau and batch_size.")
    '--crest.region.tau is -1.0 but must be positive; raise tau and --batch-size.'
    """

    def option(found: re.Match[str]) -> str:
        name = found[0]
        own = name in SETTINGS and ("_" in name or found.start() == 0)  # else it is a word
        return f"--{OPTIONS.get(name, 'crest.' + name.replace('_', '-'))}" if own else name

    return re.sub(r"(?<![\w'\"./-])\w+", option, sentence)


def _ignore(trouble: threading.ExceptHookArgs) -> None:
    del trouble


@contextlib.contextmanager
def one_sentence(interrupted: str | Callable[[], str]) -> Iterator[None]:
    """End the program with one sentence, not a traceback, for what a user can cause or interrupt.

    Args:
      interrupted: what to say after Ctrl-C, or what returns it then.
    """
    told = interrupted if callable(interrupted) else lambda: interrupted
    try:
        with remembering():
            yield
    except Stopped as stop:
        threading.excepthook = _ignore  # threads that write checkpoints end with this one
        print(f"{stop}; {told().removeprefix('interrupted; ')}", file=sys.stderr)
        sys.exit(128 + stop.number)
    except KeyboardInterrupt:
        threading.excepthook = _ignore
        sys.exit(told())
    except (UserError, FloatingPointError, data.DataError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
        what = f"a file cannot be written ({error.strerror}); make room and start again."
        sys.exit(f"error: {what if full else error}")
    except ValueError as error:
        sys.exit(f"error: {as_options(str(error))}")


def parse(
    kind: type[T],
    *,
    default: T,
    description: str | None,
    argv: Sequence[str] | None = None,
    unread: Sequence[str] = (),
) -> T:
    """Read a command line into a dataclass whose nested dataclasses are groups of options.

    ``--help`` shows the options of their own and names the groups; ``--help GROUP`` shows a group and
    ``--help all`` everything, but for what the script refuses: ``unread`` names fields, those of a
    group as "group.field", and whole groups.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    prog = None if spec is None else f"python -m {spec.name}"
    asked = next((place for place, word in enumerate(args) if word in ("-h", "--help")), None)
    if asked is None:
        return tyro.cli(kind, args=args, default=default, description=description, prog=prog)
    topic = args[asked + 1] if asked + 1 < len(args) else None
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], default=default, description=description, prog=prog)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    print(_about(_without(plain, [name.replace("_", "-") for name in unread]), topic), end="")
    sys.exit(0)


def check_setting(name: str, known: dict[str, Any]) -> None:
    """Refuse a setting that there is not, in one sentence."""
    if name not in known:
        raise UserError(
            f"--setting is {name or 'empty'} but must be one of {', '.join(known)}; choose one."
        )


def named_setting(argv: Sequence[str] | None, known: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the setting that ``--setting NAME`` names, or None, and the other arguments.

    >>> named_setting(["--seed", "3", "--setting", "one"], {"one": 1})
    (1, ['--seed', '3'])
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if "--setting" not in args:
        return None, args
    place = args.index("--setting")
    name = args[place + 1] if place + 1 < len(args) else ""
    check_setting(name, known)
    return known[name], args[:place] + args[place + 2 :]


TITLE = r"^\W*?(?:([\w.]+) )?options\W*$"


def _without(text: str, names: Sequence[str]) -> str:
    """Return a help text without options and groups of options.

    >>> text = "options\\n  --a INT\\n     One.\\n  --b INT\\n     Two.\\n"
    >>> _without(text + "run options\\n  --run.c INT\\n", ["b", "run"])
    'options\\n  --a INT\\n     One.\\n'
    """
    kept, group, option = [], "", ""
    for line in text.splitlines(keepends=True):
        if title := re.match(TITLE, line):
            group, option = title[1] or "", ""
        elif found := re.match(r"\W{0,4}?--([a-z][\w.-]*)", line):
            option = found[1]
        if not any(
            own == name or own.startswith(f"{name}.") for own in (group, option) for name in names
        ):
            kept.append(line)
    return "".join(kept)


def _about(text: str, topic: str | None) -> str:
    """Return the part of a help text about one group, or its head and the names of all groups."""
    if topic == "all":
        return text
    head, *rest = re.split(rf"(?m){TITLE}\n", text)
    boxes = list(zip(rest[::2], rest[1::2], strict=True))
    groups = list(dict.fromkeys(title.split(".")[0] for title, _ in boxes if title))
    if topic is None:
        shown = "".join(body for title, body in boxes if not title)
        more = f"\nOptions by group: --help {' | '.join(groups)} | all\n" if groups else ""
        return f"{head.strip()}\n\n{shown.rstrip()}\n{more}"
    if topic not in groups:
        raise UserError(f"--help {topic} names no group but must be one of {', '.join(groups)}, all.")
    return "".join(body for title, body in boxes if (title or "").split(".")[0] == topic)
