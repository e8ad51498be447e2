"""One self-contained HTML page."""

import base64
import html
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto }
td, th { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right }
td { white-space: nowrap }
td:first-child, th:first-child { text-align: left } img { max-width: 100% }
.made { color: #666; font-size: 0.85rem } code { font-size: 0.8rem }
"""


class Page:
    """Collects the parts of the page."""

    def __init__(self, title: str, made: str, folder: Path, stem: str) -> None:
        """Begin a page whose pictures are also written into ``folder``."""
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="made">{html.escape(made)}</p>']
        self._made, self._folder, self._stem = made, folder, stem

    def section(self, title: str, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>")

    def table(self, rows: list[list[str]]) -> None:
        """Add a table; the first row is its head."""
        head, *body = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        head = head.replace("<td>", "<th>").replace("</td>", "</th>")
        self._parts.append(
            f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"
        )

    def picture(self, name: str, figure: Figure, caption: str, made: str | None = None) -> None:
        """Add a picture with what it shows and how it was made, and write it beside the page."""
        made = self._made if made is None else made
        path = self._folder / f"{self._stem}-{name}.png"
        figure.savefig(path, dpi=110)
        data = base64.b64encode(path.read_bytes()).decode()
        alt = html.escape(caption, quote=True)
        self._parts.append(
            f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
            f'<figcaption class="made">{html.escape(caption)} {html.escape(made)}</figcaption>'
            "</figure>"
        )

    def write(self, path: Path) -> None:
        """Write the page whole or not at all."""
        body = "\n".join(self._parts)
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>crest_jax: comparison</title><style>{STYLE}</style></head>"
            f"<body>{body}</body></html>\n"
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
