"""A report as plain parts - sections of text, tables and figures - and as Markdown and one HTML file.

Everything that comes out of run folders (names, configurations, error messages) is text by the time that it arrives
here, and is escaped on the way out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from flows.files import atomic_write

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"
"""What a report's folder holds; the HTML file has its figures inside, the Markdown beside it."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    is_bold: bool = False


@dataclass(frozen=True)
class Group:
    """Rows of a table under a heading of their own, or under none."""

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table: the first ``num_left`` columns are words, the others figures."""

    header: list[str]
    groups: list[Group]
    caption: str = ""
    num_left: int = 1

    @classmethod
    def of(cls, header: list[str], rows: Sequence[Sequence[str]], caption: str = "", num_left: int = 1) -> Table:
        """A table without groups or bold entries."""
        return cls(header, [Group("", [[Cell(text) for text in row] for row in rows])], caption, num_left)


@dataclass(frozen=True)
class Figure:
    """A picture under its file name, with what it shows (``caption``) and what it looks like (``alt``)."""

    name: str
    content: bytes
    alt: str
    caption: str

    @property
    def data_uri(self) -> str:
        kind = "image/svg+xml" if self.name.endswith(".svg") else "image/png"
        return f"data:{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    sheets: list[Figure] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Report:
    """All of a report."""

    title: str
    subtitle: str
    sections: list[Section]


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write a report's Markdown, its figures and its HTML; returns the paths of the HTML and the Markdown file.

    Raises:
        StorageError: the folder cannot be written to.
    """
    for section in report.sections:
        for figure in [*section.figures, *section.sheets]:
            with atomic_write(folder / FIGURES / figure.name) as file:
                file.write(figure.content)
    paths = folder / HTML, folder / MARKDOWN
    for path, text in zip(paths, (as_html(report), as_markdown(report)), strict=True):
        with atomic_write(path) as file:
            file.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
    return paths


def as_html(report: Report) -> str:
    """One HTML page with everything inside: no script, no reference to anything else."""
    environment = Environment(
        loader=PackageLoader("flows.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report)


def as_markdown(report: Report) -> str:
    """Markdown whose figures lie in the folder ``figures``."""
    parts = [f"# {escape_markdown(report.title)}", escape_markdown(report.subtitle)]
    for section in report.sections:
        parts += [f"## {escape_markdown(section.title)}", *map(escape_markdown, section.paragraphs)]
        parts += map(_markdown_table, section.tables)
        parts += ["\n".join(f"- {escape_markdown(note)}" for note in section.notes)] if section.notes else []
        for figure in [*section.figures, *section.sheets]:
            parts += [f"![{escape_markdown(figure.alt)}]({FIGURES}/{figure.name})", escape_markdown(figure.caption)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rules = ["---" if number < table.num_left else "---:" for number in range(len(table.header))]
    lines = [[escape_markdown(name) for name in table.header], rules]
    for group in table.groups:
        if group.title:
            lines.append([f"**{escape_markdown(group.title)}**"] + [""] * (len(table.header) - 1))
        for row in group.rows:
            texts = [escape_markdown(cell.text) for cell in row]
            lines.append([f"**{text}**" if cell.is_bold else text for text, cell in zip(texts, row, strict=True)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + (f"\n\n{escape_markdown(table.caption)}" if table.caption else "")


def escape_markdown(value: object) -> str:
    r"""Text that Markdown shows as it is: on one line, no markup, no HTML, no cell of a table ended.

    >>> escape_markdown("<b>a|b</b> [x](y) *z*")
    '&lt;b&gt;a\\|b&lt;/b&gt; \\[x\\](y) \\*z\\*'
    """
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)
