"""A report as an HTML page, with matplotlib's figures as SVG inside it, and as Markdown.

The page is one file that works offline. Its template has one script, which shows, hides and labels
the series of the figures. Names are data of the page and never become part of the script: an
element lists the tokens of its content in ``data-of``, such as ``a0 p0``, and is hidden where all
tokens of one kind (first letter) are switched off.
"""

import base64
import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from analog_grasp.report.figures import AXIS_COLOUR, PALETTE, Drawn, Series, svg_text
from analog_grasp.report.tables import (
    TextTable,
    markdown_bullets,
    markdown_escape,
    markdown_table,
    verdict,
)
from analog_grasp.utils.io import write_atomically

# Width and height of a figure, which the page scales to the width of its column.
_INCHES, _SMALL_INCHES = (4.6, 2.7), (3.1, 2.4)
# Data of more bytes are linked instead of embedded, so that the page opens quickly.
_EMBEDDED_BYTES = 2_000_000
# Colours of the figures as custom properties of the page, which has a dark and a light scheme.
_COLOURS = {colour.lower(): f"var(--series-{i})" for i, colour in enumerate(PALETTE)} | {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    AXIS_COLOUR: "var(--soft)",
    "#e4e4e4": "var(--line)",
}
# Not allowed in XML, but in names.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_SWATCH_LINE = 2
_SHAPES = {
    "o": '<circle cx="6" cy="6" r="5"/>',
    "s": '<rect x="1.5" y="1.5" width="9" height="9"/>',
    "^": '<path d="M6 1 11.5 11H.5z"/>',
    "D": '<path d="M6 .5 11.5 6 6 11.5.5 6z"/>',
    "v": '<path d="M6 11 .5 1h11z"/>',
    "P": '<path d="M4 .5h4V4h3.5v4H8v3.5H4V8H.5V4H4z"/>',
    "X": '<path d="M3 .5l3 3 3-3L11.5 3l-3 3 3 3L9 11.5l-3-3-3 3L.5 9l3-3-3-3z"/>',
    "<": '<path d="M1 6 11 .5v11z"/>',
    ">": '<path d="M11 6 1 .5v11z"/>',
    "*": '<path d="M6 .3 7.4 4.4h4.3L8.2 6.9l1.3 4.1L6 8.5 2.5 11l1.3-4.1L.3 4.4h4.3z"/>',
    "p": '<path d="M6 .5l5.5 4-2.1 6.5H2.6L.5 4.5z"/>',
    "d": '<path d="M6 .5 9.3 6 6 11.5 2.7 6z"/>',
    "": "",
}


class Chart(NamedTuple):
    """A figure of the page, with the tokens of its content."""

    title: str
    description: str
    """Text for readers who do not see the figure."""
    draw: Callable[[Axes], Drawn]
    tokens: str = ""
    legend: Sequence[tuple[str, Markup, str]] = ()
    """Label, swatch and tokens of each line that the switches do not name."""


class FigureFile(NamedTuple):
    """A figure of the summary: its name, and the function that writes it to `figure_files`."""

    name: str
    write: Callable[[Path], list[Path]]


class Section(NamedTuple):
    """A part of a report below a title: text, figures, caption, tables, note and sentences.

    It is skipped where it has no figure, table or sentence.
    """

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    """The figures of the page."""
    small: bool = False
    """Show them in narrow columns."""
    files: Sequence[FigureFile] = ()
    """The figures of the summary."""
    caption: str = ""
    tables: Sequence[TextTable] = ()
    note: str = ""
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """A report, to be rendered as a page and as a summary.

    Attributes:
        title, finding: Title of the report, and its first sentence.
        sections: Its parts.
        link, data_name, data: Text of the link to the data, name of their file, and its content,
            which the page embeds unless it is large.
        switches: Token, label and swatch of each checkbox of the page by the title of their group;
            they are also the legend of the figures.
    """

    title: str
    finding: str
    sections: Sequence[Section]
    link: str
    data_name: str
    data: str
    switches: Mapping[str, Sequence[tuple[str, str, Markup]]] = field(default_factory=dict)

    def page(self) -> str:
        """Return the page by the template, which escapes every text."""
        content, numbers = self.data.encode(), itertools.count()
        embedded = f"data:text/csv;base64,{base64.b64encode(content).decode()}"
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["verdict"] = verdict
        environment.filters["svg"] = lambda chart, small: _page_svg(chart, small, next(numbers))
        target = embedded if len(content) <= _EMBEDDED_BYTES else self.data_name
        return environment.get_template("page.html.j2").render(vars(self), target=target)

    def summary(self) -> str:
        """Return the report as Markdown."""
        parts = [f"# {markdown_escape(self.title)}", markdown_escape(self.finding)]
        for section in self.sections:
            if section.files or section.tables or section.sentences:
                title = markdown_escape(section.title)
                parts += [
                    f"## {title}",
                    markdown_escape(section.text),
                    *(f"![{title}]({file.name}.svg)" for file in section.files),
                    markdown_escape(section.caption),
                    *map(markdown_table, section.tables),
                    markdown_escape(section.note),
                    markdown_bullets(section.sentences),
                ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def write(self, directory: Path) -> list[Path]:
        """Write summary.md, its figures and report.html; raise OSError if one cannot be written."""
        summary, page = directory / "summary.md", directory / "report.html"
        write_atomically(summary, self.summary().encode())
        files = [file for section in self.sections for file in section.files]
        figures = [path for file in files for path in file.write(directory / file.name)]
        write_atomically(page, self.page().encode())
        return [summary, *figures, page]


def swatch(
    marker: str,
    colour: str = "currentColor",
    line_style: str | tuple[float, Sequence[float]] | None = None,
) -> Markup:
    """Return a marker for a legend, in a colour of the figures, on a line if it has a style.

    An empty marker is none.

    Example:
        >>> str(swatch("s", "#0072B2")).partition(" style=")[2]
        '"fill: var(--series-0)"><rect x="1.5" y="1.5" width="9" height="9"/></svg>'
    """
    fill = _COLOURS.get(colour.lower(), colour)
    if line_style is None:
        return Markup(
            f'<svg class="swatch" aria-hidden="true" viewBox="0 0 12 12" style="fill: {fill}">'
            f"{_SHAPES[marker]}</svg>"
        )
    dashes = () if isinstance(line_style, str) else line_style[1]
    dash_array = " ".join(f"{_SWATCH_LINE * length:g}" for length in dashes) or "none"
    return Markup(
        '<svg class="swatch line" aria-hidden="true" viewBox="-22 0 56 12"'
        f' style="fill: {fill}"><path d="M-22 6h56" style="stroke: {fill};'
        f' stroke-width: {_SWATCH_LINE}; stroke-dasharray: {dash_array}"/>{_SHAPES[marker]}</svg>'
    )


def _page_svg(chart: Chart, small: bool, number: int) -> Markup:
    """Return a figure as SVG with the colours, tokens and labels of the page.

    The number makes its ids unique. Each marker of a series becomes an element that has a label
    and can be focused; a series without markers becomes one such element itself.
    """
    text, drawn = svg_text(_SMALL_INCHES if small else _INCHES, chart.draw)
    root = ElementTree.fromstring(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text))
    for element in root.iter():
        # Without namespaces.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: v for name, v in element.attrib.items()}
    definitions = ElementTree.Element("defs")
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "defs"):
                parent.remove(child)
            if child.tag == "defs":
                # Not within a series: hidden with it, they could be missing from another.
                definitions.extend(part for part in child if part.tag != "style")
    root.insert(0, definitions)
    for element in root.iter():
        if (series := drawn.get(element.get("id", ""))) is not None:
            _label(element, series)
    for element in root.iter():
        for name in ("id", "href", "clip-path", "style"):
            if name in element.attrib:
                element.set(name, _page_value(name, element.attrib[name], f"chart{number}-"))
    root.attrib = {"viewBox": root.attrib["viewBox"]}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _label(group: ElementTree.Element, series: Series) -> None:
    group.set("data-of", series.tokens)
    if not series.labels:
        return
    group.set("class", "series")
    points = [element for element in group.iter() if element.tag == "use"]
    if not points:
        # Wider than the line, which would be hard to point at.
        area = copy.deepcopy(group[0])
        area.set("style", "fill: none; stroke: transparent; stroke-width: 9")
        group.append(area)
        points = [group]
    for point, label in zip(points, series.labels, strict=True):
        classes = f"{point.get('class', '')} point".strip()
        point.attrib.update(
            {"class": classes, "role": "img", "aria-label": label, "tabindex": "-1"}
        )


def _page_value(name: str, value: str, prefix: str) -> str:
    if name == "style":
        value = re.sub(r"font-family: [^;]*;?", "", value)
        return re.sub(r"#[0-9a-f]{6}\b", lambda match: _COLOURS.get(match[0], match[0]), value)
    return prefix + value if name == "id" else value.replace("#", f"#{prefix}")
