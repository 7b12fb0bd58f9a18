"""Rendering of pages and charts from Jinja2 templates, with every value escaped."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from thinktwice.pages import figures

KIT = Path(__file__).parent / "templates"


def render(folder: Path, name: str, **values: object) -> Markup:
    """Fill a template.

    Args:
        folder: folder of the template, which may use the kit's templates by name.
        values: values of the template. Text is escaped; invisible and control characters are written as Python escapes
            (``\\x1b``). Only values with ``__html__`` (markup of another template, a chart) are inserted unchanged.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not passed.
    """
    return Markup(_environment(folder).get_template(name).render(values))  # noqa: S704 (the template has escaped it)


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder), FileSystemLoader(KIT)]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.filters |= {
        "fmt": format,
        "number": figures.number,
        "change": figures.change,
        "interval": figures.interval,
        "signed": figures.signed,
        "judged": figures.judged,
        "sentence": sentence,
    }
    return environment


def visible(value: object) -> object:
    """The value as text without control characters, which HTML escaping does not cover; markup is unchanged."""
    if hasattr(value, "__html__"):
        return value
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def sentence(line: str) -> str:
    """The line with a capital letter and a full stop."""
    return f"{line[:1].upper()}{line[1:]}."
