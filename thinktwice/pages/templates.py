"""Pages and charts from Jinja2 templates: every value is escaped, whatever it holds."""

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
        folder: where the template is; it may use the templates of the kit by name.
        values: what the template shows. Text is escaped; characters that show nothing or control what is shown are written as
            Python writes them (``\\x1b``). Only what has ``__html__`` (markup of another template, a chart) is taken as it is.

    Raises:
        jinja2.UndefinedError: the template uses a value that was not given.
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
    """The value as text without control characters, which no escaping of HTML covers; markup stays as it is."""
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
