"""A report as plain parts - sections of text, tables and figures - and as Markdown and one HTML file.

Everything that comes out of run folders (names, configurations, error messages) is text by the time that it arrives
here, and is escaped on the way out.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from flows.files import atomic_write

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"
"""What a report's folder holds; the HTML file has its figures inside, the Markdown beside it."""

PICTURE_BYTES = 1_500_000
"""Of all sheets of samples in the HTML file together; larger ones are shown reduced."""

NONE = "-"
"""In a table: there is no such figure."""


class Bold(str):
    """An entry of a table that stands out."""


@dataclass(frozen=True)
class Table:
    """A table: the first ``num_left`` columns are words, the others figures; ``groups`` are its rows by their title."""

    header: list[str]
    groups: dict[str, list[list[str]]]
    caption: str
    num_left: int

    @classmethod
    def of(
        cls, header: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], caption: str = "", num_left: int = 1
    ) -> Table:
        """A table without the columns that have no entry at all."""
        rows = [row for group in groups.values() for row in group]
        kept = [number for number in range(len(header)) if any(row[number] != NONE for row in rows)]
        return cls(
            [header[number] for number in kept],
            {title: [[row[number] for number in kept] for row in group] for title, group in groups.items()},
            caption,
            sum(number < num_left for number in kept),
        )


@dataclass(frozen=True)
class Figure:
    """A picture under its file name, with what it shows (``caption``) and what it looks like (``alt``)."""

    name: str
    content: bytes
    alt: str
    caption: str

    @property
    def is_chart(self) -> bool:
        """Whether it is drawn, and not a sheet of samples."""
        return self.name.endswith(".svg")

    def reduced(self, limit: float) -> Figure:
        """The same picture of less than some bytes, and with a caption that says so, if it has more."""
        if self.is_chart or len(self.content) <= limit:
            return self
        picture = Image.open(io.BytesIO(self.content)).convert("RGB")
        while True:
            file = io.BytesIO()
            picture.save(file, format="WebP", quality=70)
            if len(file.getvalue()) <= limit or min(picture.size) < 64:
                return replace(
                    self, content=file.getvalue(), caption=f"{self.caption} Reduced; whole: {FIGURES}/{self.name}."
                )
            picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)

    @property
    def data_uri(self) -> str:
        kind = "svg+xml" if self.is_chart else "png" if self.content.startswith(b"\x89PNG") else "webp"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

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
        for figure in section.figures:
            with atomic_write(folder / FIGURES / figure.name) as file:
                file.write(figure.content)
    paths = folder / HTML, folder / MARKDOWN
    for path, text in zip(paths, (as_html(report), as_markdown(report)), strict=True):
        with atomic_write(path) as file:
            file.write(text.encode(errors="backslashreplace"))  # names of files need not be UTF-8
    return paths


def as_html(report: Report) -> str:
    """One HTML page with everything inside: no script, no reference to anything else."""
    limit = PICTURE_BYTES / max(1, sum(not figure.is_chart for part in report.sections for figure in part.figures))
    sections = [replace(part, figures=[f.reduced(limit) for f in part.figures]) for part in report.sections]
    return _render("report.html", replace(report, sections=sections), autoescape=True)


def as_markdown(report: Report) -> str:
    """Markdown whose figures lie in the folder ``figures``."""
    return _render("report.md", report, finalize=escape_markdown)


def _render(template: str, report: Report, **escaping: Any) -> str:
    environment = Environment(
        loader=PackageLoader("flows.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **escaping,
    )
    environment.tests["bold"] = lambda entry: isinstance(entry, Bold)
    return environment.get_template(template).render(report=report)


def escape_markdown(value: object) -> str:
    r"""Text that Markdown shows as it is: on one line, no markup, no HTML, no cell of a table ended.

    >>> escape_markdown("<b>a|b</b> [x](y) *z*")
    '&lt;b&gt;a\\|b&lt;/b&gt; \\[x\\](y) \\*z\\*'
    """
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)
