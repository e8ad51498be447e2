"""Results as files: JSON lines and text tables."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def record(event: Any, **extra: Any) -> dict[str, Any]:
    """Turn an event (a NamedTuple of Python values) into a JSON-ready dictionary.

    Nested NamedTuples become dictionaries and values that JSON cannot hold (NaN, infinity) become
    None.

    Example:
      >>> from crest_jax.types import Work
      >>> record(Work(selection_forward=3), step=1)["selection_forward"]
      3
    """
    fields = event._asdict() if hasattr(event, "_asdict") else dict(event)
    return {name: _plain(value) for name, value in {**fields, **extra}.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict") or isinstance(value, Mapping):
        return record(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as a line to a file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "events.jsonl"
      >>> append_line(path, {"step": 1})
      >>> read_lines(path)
      [{'step': 1}]
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; see ``append_line``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns.

    Example:
      >>> print(table(["a", "b"], [["1", "22"]]))
      | a | b  |
      |---|----|
      | 1 | 22 |
    """
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
