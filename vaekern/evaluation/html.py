"""One HTML file that needs nothing else: no script, no request, pictures inside."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, Protocol

PNG = b"\x89PNG\r\n\x1a\n"

# Colours of the system theme, so that the page is light or dark as its reader has chosen. Pictures
# are drawn on white and keep a white card around them.
STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5b6774; --line: #d9dee4;
  --paper: #fff; --shade: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --muted: #a3adb8; --line: #3a444f;
  --paper: #14181d; --shade: #1d232a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; }
p, figcaption, caption { color: var(--muted); }
figure { margin: 0; }
figcaption { font-size: .9rem; margin-top: .4rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .4rem; }
.pictures { display: grid; gap: 1.4rem 1.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
pre + .pictures { margin-top: 1.2rem; }
.wide { grid-column: 1 / -1; }
.fine .card { overflow-x: auto; }
.fine img { min-width: 34rem; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; }
caption { text-align: left; padding-bottom: .4rem; font-size: .9rem; }
th, td { text-align: left; font-weight: normal; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: baseline; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.part th { padding-left: 1.2rem; }
.unit { color: var(--muted); }
pre, code { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { overflow-x: auto; background: var(--shade); border-radius: 6px; padding: .8rem; margin: 0; }
summary { cursor: pointer; padding: .3rem 0; }
details table { margin: .4rem 0 1rem; }
details td { overflow-wrap: anywhere; }
""".strip()


class Picture(NamedTuple):
    """A PNG file and what it shows."""

    path: Path
    alt: str  # what a reader who does not see it is told
    caption: str = ""
    wide: bool = False  # over the whole width of the page
    fine: bool = False  # unreadable when shrunk: a narrow screen scrolls it instead


class Row(Protocol):
    """A name, a number as it is read, and as it is."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def value(self) -> float | None: ...  # all digits of the number in `text`
    @property
    def part(self) -> bool: ...  # of the row above


def page(title: str, introduction: Sequence[str], sections: Sequence[str]) -> str:
    """The file's content. Sections are HTML, all else is text.

    Example:
        >>> "<h1>A &amp; B</h1>" in page("A & B", ["one run"], [section("Numbers", "<p>1</p>")])
        True
    """
    paragraphs = "\n".join(f"<p>{escape(each)}</p>" for each in introduction)
    body = "\n".join(sections)
    # The policy makes a browser refuse whatever a mistake here might ask for.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{paragraphs}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; empty without parts."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def number_table(rows: Sequence[Row], caption: str) -> str:
    """Rows of numbers, each with all its digits for whoever reads the file by machine."""
    lines = []
    for row in rows:
        text = escape(row.text)
        if row.value is not None:
            text = f'<data value="{row.value!r}">{text}</data>'
        part = ' class="part"' if row.part else ""
        lines.append(
            f'<tr{part}><th scope="row">{escape(row.name)}</th><td class="number">{text}</td>'
            f'<td class="unit">{escape(row.unit)}</td></tr>'
        )
    return _table(lines, caption)


def text_table(rows: Sequence[tuple[str, object]], caption: str = "") -> str:
    """Names and texts."""
    lines = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in rows
    ]
    return _table(lines, caption)


def _table(lines: Sequence[str], caption: str) -> str:
    head = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    return f"<table>\n{head}<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def preformatted(text: str) -> str:
    """Text in columns."""
    return f'<pre tabindex="0">{escape(text)}</pre>'  # scrolled with the keyboard, too


def folded(title: str, *parts: str) -> str:
    """Shown when its title is clicked; needs no script."""
    return f"<details>\n<summary>{escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def pictures(chosen: Sequence[Picture]) -> str:
    """The pictures that exist, side by side where there is room."""
    found = [figure(each) for each in chosen if each.path.is_file()]
    return '<div class="pictures">\n' + "\n".join(found) + "\n</div>" if found else ""


def figure(picture: Picture) -> str:
    """One picture, embedded.

    Raises:
        ValueError: the file is no PNG picture.
    """
    content = picture.path.read_bytes()
    if content[:8] != PNG or len(content) < 24:
        raise ValueError(f"{picture.path} must be a PNG picture, got something else; draw it again")
    width, height = struct.unpack(">II", content[16:24])
    data = base64.b64encode(content).decode("ascii")
    classes = [name for name in ("wide", "fine") if getattr(picture, name)]
    kind = f' class="{" ".join(classes)}"' if classes else ""
    scrolled = ' tabindex="0"' if picture.fine else ""  # with the keyboard, too
    caption = f"\n<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure{kind}>\n<div class="card"{scrolled}><img alt="{escape(picture.alt)}" '
        f'width="{width}" height="{height}" src="data:image/png;base64,{data}"></div>'
        f"{caption}\n</figure>"
    )


def sentence(name: str) -> str:
    """A file's name as words.

    Example:
        >>> sentence("singular_value_gaps.png")
        'Singular value gaps'
    """
    return re.sub(r"[_\W]+", " ", name.rpartition(".")[0] or name).strip().capitalize()
