"""Self-contained HTML pages from the templates: everything in one file, whatever a model wrote escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from commands.store import library_versions, write_atomically

_TEMPLATES = Path(__file__).parents[1]


def render_page(template: str, pictures: Mapping[str, bytes], **context: object) -> bytes:
    """A page from the template of that path below bridge/; `pictures` are PNG files by name, shown as data."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    page = environment.get_template(template).render(
        versions={"transformers": "–", "torch": "–", "alignment-collapse": "–"} | library_versions(),
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
        **context,
    )
    return page.encode()


def write_page(folder: Path, template: str, pictures: Mapping[str, bytes], **context: object) -> None:
    """Write the pictures, NAME.png each, and report.html from the template of that path below bridge/."""
    for name, png in pictures.items():
        write_atomically(folder / f"{name}.png", png)
    write_atomically(folder / "report.html", render_page(template, pictures, **context))
