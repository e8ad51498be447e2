"""One self-contained HTML page."""

import base64
import html
import io
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --dim: #666; --line: #ddd; --page: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #cfd0d0; --dim: #9a9a9a; --line: #3a3a3a; --page: #131416 }
}
body { font: 16px/1.55 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
       color: var(--text); background: var(--page) }
h1 { font-size: 1.7rem } h2 { font-size: 1.25rem; margin-top: 2.4rem }
table { border-collapse: collapse; font-size: 0.8rem; display: block; overflow-x: auto }
td, th { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right }
td { white-space: nowrap } th { vertical-align: bottom }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: var(--page) }
figure { margin: 1rem 0; overflow-x: auto }
img { width: 100%; min-width: 42rem; max-width: 62rem; background: #fff; border-radius: 4px }
.dim, figcaption { color: var(--dim); font-size: 0.85rem; overflow-wrap: anywhere }
"""


class Page:
    """Collects the parts of the page."""

    def __init__(self, title: str, made: str, pictures: Path | None) -> None:
        """Begin a page; ``pictures`` is a folder that gets the pictures too, or None."""
        self._title, self._made, self._folder = title, made, pictures
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def section(self, title: str, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")

    def table(self, rows: list[list[str]]) -> None:
        """Add a table; the first row is its head. Columns that say nothing are left out."""
        columns = [c for c in zip(*rows, strict=True) if any(cell not in ("", "-") for cell in c[1:])]
        rows = [list(row) for row in zip(*columns, strict=True)]
        head, *body = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        head = head.replace("<td>", '<th scope="col">').replace("</td>", "</th>")
        self._parts.append(
            f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
        )

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """Add a picture with what it shows, and write it to the folder of pictures if there is one."""
        png = io.BytesIO()
        figure.savefig(png, dpi=110, format="png")
        if self._folder is not None:
            (self._folder / f"{name}.png").write_bytes(png.getvalue())
        data, told = base64.b64encode(png.getvalue()).decode(), html.escape(caption, quote=True)
        self._parts.append(
            f'<figure><img alt="{told}" src="data:image/png;base64,{data}">'
            f"<figcaption>{told}</figcaption></figure>"
        )

    def write(self, path: Path) -> None:
        """Write the page whole or not at all."""
        body = "\n".join([*self._parts, f'<p class="dim">Made by {html.escape(self._made)}</p>'])
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self._title)}</title><style>{STYLE}</style></head>"
            f"<body>{body}</body></html>\n"
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
