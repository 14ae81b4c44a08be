"""What mkdocs.yml needs besides its plugins: pages from files outside of ``docs/``, and links in docstrings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

PAGES = {
    ROOT / name: "index.md" if name == "README.md" else name
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
}

LINK = re.compile(r'(\[[\w/]+\.md)?(\]\(|src=")([^)"#:\s]+)')
"""The start of a link or of a picture, with its label if that is a file's name, and the file."""

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([\w.\s]+)`")
"""A reference to a name, as docstrings have it."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that stand at the project's top, and the source files that any page links to."""
    sources = set()
    titles = dict(_titles(config.nav))

    def page_of(path: Path) -> str | None:
        if path in PAGES:
            return PAGES[path]
        if path.is_relative_to(DOCS):
            return path.relative_to(DOCS).as_posix()
        if not path.is_file():
            return None
        sources.add(path)
        return f"source/{path.relative_to(ROOT).as_posix()}.md"

    def add(name: str, content: str, **options: Any) -> None:
        if (old := files.get_file_from_path(name)) is not None:
            files.remove(old)
        files.append(File.generated(config, name, content=content, **options))

    for path in [*PAGES, *DOCS.glob("*.md")]:
        name = page_of(path)

        def relinked(link: re.Match, path: Path = path, name: str = name) -> str:
            page = page_of((path.parent / link[3]).resolve())
            if page is None:
                return link[0]
            label = "" if link[1] is None else f"[{titles[page]}"
            return label + link[2] + os.path.relpath(page, os.path.dirname(name) or ".")

        add(name, LINK.sub(relinked, path.read_text()))
    for path in sorted(sources):
        text = f"# `{path.relative_to(ROOT)}`\n\n````{path.suffix[1:]}\n{path.read_text()}````\n"
        add(page_of(path), text, inclusion=InclusionLevel.NOT_IN_NAV)
    return files


def _titles(nav: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Every page of the navigation with its title."""
    for entry in nav:
        for title, below in entry.items():
            yield from [(below, title)] if isinstance(below, str) else _titles(below)


class References(griffe.Extension):
    """Turns Sphinx's references in docstrings into links, and its ``::`` before code into ``:``."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a name that has one."""
        if obj.docstring is None:
            return

        def link(role: re.Match) -> str:
            name = "".join(role[1].split()).lstrip(".")
            try:
                path = obj.resolve(name)
            except griffe.NameResolutionError:
                path = name
            return f'<autoref identifier="{path}" optional>`{name}`</autoref>'

        text = re.sub(r"::$", ":", ROLE.sub(link, obj.docstring.value), flags=re.MULTILINE)
        obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")
