"""A page that opens from disk without a network: its style, its figures and its program are inside it.

All text is escaped, and of an SVG file only what draws is taken over: whatever a file holds, none of it is run.
"""

import base64
import dataclasses
import html
import pathlib
import re
from collections.abc import Sequence
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
# What is taken over from SVG files: drawing, and the titles at the pointer.
_ELEMENTS = {
    "svg",
    "g",
    "defs",
    "path",
    "use",
    "clipPath",
    "rect",
    "circle",
    "image",
    "title",
    "linearGradient",
    "stop",
}
_SAFE_LINK = re.compile(r"#[\w.-]+|data:image/png;base64,[A-Za-z0-9+/=\s]*")
_NAMED = re.compile(r"(?:^|url\()#([\w.-]+)")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as texts.

    Attributes:
      title: above it.
      columns: their names.
      rows: texts, as many as columns in each.
      note: below it: what the columns say, and by what the rows are sorted.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def page(title: str, parts: Sequence[str]) -> str:
    """Returns the document with these parts of HTML, in their order, below the title."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<script>{_PROGRAM}</script>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph; `kind` is a class of the style: "question", "note" or "warning"."""
    return f"<p{f' class={kind!r}' if kind else ''}>{html.escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def folded(summary: str, inner: str) -> str:
    """Returns HTML that opens at a click on its summary."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{inner}\n</details>"


def links(paths: Sequence[str]) -> str:
    """Returns a list of links to files, by their paths from the page."""
    # A leading "./": else a name such as "javascript:x" would be more than a name.
    items = (f'<li><a href="./{html.escape(path)}">{html.escape(path)}</a></li>' for path in paths)
    return f"<ul>{''.join(items)}</ul>"


def table(content: Table) -> str:
    """Returns a table that is sorted by a column at a click on its head."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in content.columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in content.rows)
    note = paragraph(content.note, "note") if content.note else ""
    return (
        f"{heading(content.title)}\n<div class='wide'><table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>\n{note}"
    )


def figure(path: pathlib.Path, number: int) -> str:
    """Returns a figure with its caption: an SVG file of `rnn_jax.report.style.save_figure`, or any PNG file.

    Raises:
      ValueError: the file is no picture of its kind.
    """
    if path.suffix == ".svg":
        try:
            root = ElementTree.fromstring(path.read_bytes())
        except ElementTree.ParseError as error:
            raise ValueError(f"{str(path)!r} is no SVG file ({error}); allowed: figures of a run.") from error
        caption = root.findtext(f".//{_DESCRIPTION}") or path.stem
        picture = _inline(root, f"f{number}-")
    else:
        content = path.read_bytes()
        if not content.startswith(b"\x89PNG"):
            raise ValueError(f"{str(path)!r} is no PNG file; allowed: figures of a run.")
        caption = path.stem
        picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
    text = f"<b>Figure {number}.</b> {html.escape(caption)}"
    return f"<figure>{picture}\n<figcaption>{text}</figcaption></figure>"


def _inline(root: ElementTree.Element, prefix: str) -> str:
    """Returns what draws of an SVG document, all names in it with a prefix: pages hold several."""
    names = {name for element in root.iter() for value in element.attrib.values() for name in _NAMED.findall(value)}
    drawn = _cleaned(root, prefix, names)
    if drawn is None:
        raise ValueError("an SVG file without an <svg> element; allowed: figures of a run.")
    width = re.match(r"[\d.]+", drawn.attrib.pop("width", "")) or re.match("", "")
    drawn.attrib.pop("height", None)
    style = f"max-width:{1.35 * float(width.group()):.0f}pt;" if width and width.group() else ""
    drawn.set("style", f"{style}stroke-linejoin:round;stroke-linecap:butt")
    drawn.set("role", "img")
    drawn.set("xmlns", _SVG.strip("{}"))
    return ElementTree.tostring(drawn, encoding="unicode")


def _cleaned(element: ElementTree.Element, prefix: str, names: set[str]) -> ElementTree.Element | None:
    """Copies what draws; of `names`, those in use, each goes once an element has it: matplotlib repeats some."""
    name = element.tag.removeprefix(_SVG) if isinstance(element.tag, str) else ""
    if name not in _ELEMENTS:
        return None
    copy = ElementTree.Element(name)
    copy.text = element.text if name == "title" else None
    for key, value in element.attrib.items():
        if key in (_HREF, "href"):
            if not _SAFE_LINK.fullmatch(value):
                return None
            copy.set("href", value.replace("#", f"#{prefix}", 1) if value.startswith("#") else value)
        elif key == "id":
            if value in names:
                names.remove(value)
                copy.set("id", prefix + value)
        elif not key.startswith(("{", "on")) and "url(" not in _REFERENCE.sub("", value):
            copy.set(key, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    copy.extend(child for child in (_cleaned(child, prefix, names) for child in element) if child is not None)
    return copy


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.question { font-size: 1.15rem; margin-top: 0; } .note { color: #555; font-size: 0.9rem; }
.warning { background: #fff3d6; border-left: 4px solid #e69f00; padding: 0.5rem 0.8rem; }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; white-space: pre-wrap; word-break: break-word;
  font-size: 0.85rem; }
figure { margin: 1.8rem 0; } figure svg, figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 0.92rem; color: #333; margin-top: 0.4rem; }
.hover rect:hover { fill: rgba(0, 0, 0, 0.06); } .hover circle:hover { stroke: #000; stroke-width: 0.8; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.88rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { cursor: pointer; border-bottom: 2px solid #888; } th:first-child, td:first-child { text-align: left; }
#at { position: fixed; display: none; pointer-events: none; background: #222; color: #fff; padding: 0.35rem 0.6rem;
  border-radius: 4px; font-size: 0.8rem; white-space: pre; z-index: 9; }
@media print { details { display: none; } body { max-width: none; } }
"""

# Titles at once, where browsers wait a second; and tables sorted by the column that is clicked, the other way round
# by a second click.
_PROGRAM = """
const at = document.body.appendChild(Object.assign(document.createElement("div"), {id: "at"}));
for (const title of document.querySelectorAll("figure title")) {
  const shape = title.parentNode, text = title.textContent;
  title.remove();
  shape.addEventListener("mousemove", event => {
    at.textContent = text;
    at.style.display = "block";
    at.style.left = Math.min(event.clientX + 14, innerWidth - at.offsetWidth - 8) + "px";
    at.style.top = Math.min(event.clientY + 14, innerHeight - at.offsetHeight - 8) + "px";
  });
  shape.addEventListener("mouseleave", () => { at.style.display = "none"; });
}
const value = (row, k) => row.cells[k].textContent.trim();
const number = text => parseFloat(text.replace(/[,≥]/g, ""));
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const k = head.cellIndex, body = head.closest("table").tBodies[0];
  const turn = head.dataset.turn = head.dataset.turn === "1" ? "-1" : "1";
  const order = (a, b) => {
    const x = number(value(a, k)), y = number(value(b, k));
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || turn * value(a, k).localeCompare(value(b, k));
    return turn * (x - y);
  };
  body.append(...[...body.rows].sort(order));
});
"""
