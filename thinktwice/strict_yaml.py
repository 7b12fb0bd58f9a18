"""Loader of hand-written YAML, the only one of the project: it refuses errors that PyYAML ignores.

PyYAML lets the second of two equal keys win, expands aliases without a limit, reads ``NO``, ``on``, ``010``, ``12:30`` and
``2024-01-01`` as something else than text, and reports errors in terms of its parser. With this loader every error of a
file is one sentence with its line, and all scalars are text except true, false, null and plain numbers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from thinktwice.errors import ThinktwiceError, guessed

MAX_CHARACTERS = 1 << 20
MAX_NODES = 200_000  # values after all aliases are expanded
MERGE = "tag:yaml.org,2002:merge"


def read_mapping(path: Path | str, what: str, error: type[ThinktwiceError]) -> dict[str, Any]:
    """The mapping in a YAML file; ``{}`` for an empty one. ``what`` names the file in messages, e.g. ``schema file``.

    Raises:
        error: the file cannot be read, or is not a single mapping with unique keys.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as cause:
        raise error(
            f"{what} {path} cannot be read ({cause.strerror or cause}): give the path of a YAML file"
        ) from cause
    except UnicodeDecodeError as cause:
        raise error(f"{what} {path} is not UTF-8 text (byte {cause.start}): save it as UTF-8") from cause
    return mapping(text, f"{what} {path}", error)


def mapping(text: str, where: str, error: type[ThinktwiceError]) -> dict[str, Any]:
    """Like :func:`read_mapping`, from text; ``where`` names its origin."""
    try:
        value = _parsed(text)
    except _WrongError as cause:
        raise error(f"{where} {cause}") from cause
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise error(f"{where} contains a {_kind(value)} instead of a mapping: start with a line like 'name: value'")
    non_text = next((key for key in value if not isinstance(key, str)), None)
    if non_text is not None:
        raise error(f"{where} has the key {non_text!r}, which is not text: put it in quotes")
    return value


def parse_yaml(text: str) -> Any:
    """The value in a YAML text; None for an empty one.

    Raises:
        ValueError: it is not YAML, or breaks one of the rules of this module; the message starts with ``it``.
    """
    try:
        return _parsed(text)
    except _WrongError as cause:
        raise ValueError(f"it {cause}") from cause


def _parsed(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise _WrongError(f"has {len(text):,} characters, at most {MAX_CHARACTERS:,} are read: give a shorter one")
    try:
        return _load(text)
    except RecursionError as cause:
        raise _WrongError("is nested too deeply: give one of ordinary depth") from cause
    except yaml.YAMLError as cause:
        raise _WrongError(f"is not valid YAML{_line_suffix(cause)} ({_problem(cause)}): correct the syntax") from cause
    except (ValueError, OverflowError) as cause:  # of a value, such as the date 2024-13-45
        raise _WrongError(f"contains a value that cannot be read ({cause}): put it in quotes") from cause


class _WrongError(Exception):
    """An error of a document; the message does not name the document."""


class _Loader(yaml.SafeLoader):
    """Reads fewer scalars as non-text than PyYAML does, but everything PyYAML writes is read back unchanged."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}  # type: ignore[misc]  # of no other loader


_FLOAT = r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _what, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", r"<<", ["<"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_what}", re.compile(rf"^(?:{_form})$"), _first)


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        # Before construction: merging changes the nodes, and merged keys may be overridden.
        _check(root, loader)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check(root: yaml.Node, loader: _Loader) -> None:
    """Refuse duplicate keys, recursive aliases, and too many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise _WrongError(f"has an alias at line {_line(node)} that refers to itself: write out the value")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _check_keys(node, loader)
                total = 1 + sum(size(key) + size(value) for key, value in node.value)
            else:
                total = 1 + (sum(map(size, node.value)) if isinstance(node, yaml.SequenceNode) else 0)
            if total > MAX_NODES:
                raise _WrongError(f"contains more than {MAX_NODES:,} values once its aliases are expanded: write fewer")
            open_nodes.remove(id(node))
            sizes[id(node)] = total
        return sizes[id(node)]

    size(root)


def _check_keys(node: yaml.MappingNode, loader: _Loader) -> None:
    first_keys: dict[Any, yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _WrongError(f"has a key at line {_line(key)} that is a list or a mapping: use text")
        value = MERGE if key.tag == MERGE else loader.construct_object(key)
        earlier = first_keys.setdefault(value, key)
        if earlier is not key:
            raise _WrongError(
                f"has the key {key.value!r} twice, at lines {_line(earlier)} and {_line(key)}: "
                "one would replace the other, keep one of them"
            )


def first_fault(found: ValidationError, model: type[BaseModel], whole: str) -> tuple[str, str]:
    """Location and description of the first error of a mapping; ``whole`` names the mapping itself.

    For an unknown key the nearest key of ``model`` is suggested.
    """
    faults = found.errors(include_url=False)
    first = faults[0]
    if first["type"] == "missing":  # a misspelled key lacks the right one: name the misspelling
        parent, missing = first["loc"][:-1], str(first["loc"][-1])
        beside = [f for f in faults if f["type"] == "extra_forbidden" and f["loc"][:-1] == parent]
        first = next((f for f in beside if difflib.get_close_matches(str(f["loc"][-1]), [missing])), first)
    location = ".".join(str(part) for part in first["loc"]) or whole
    if first["type"] == "extra_forbidden":
        known = list(_model_at(model, first["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        then = f"known are {', '.join(known)}"
        return location, f"there is no such key; {guessed([*map(repr, close)], then)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        choices = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
        close = difflib.get_close_matches(first["input"], choices, n=1)
        then = f"choose one of {', '.join(choices)}"
        message = f"{first['input']!r} is unknown: {guessed([*map(repr, close)], then)}"
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        message += f" (YAML has read it as {str(first['input']).lower()}: put it in quotes)"
    return location, message


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the mapping at ``path`` in a mapping of ``model``."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _line_suffix(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f" at line {mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if "'\\t'" in problem:
        return "tabs are not allowed for indentation"
    if "but found another document" in problem:
        return "a second document begins after '---'"
    if "could not determine a constructor for the tag" in problem:
        return f"the tag {problem.rsplit(' ', 1)[-1]} is not supported"
    return " ".join(problem.split())


def _kind(value: Any) -> str:
    return {"list": "list", "str": "text", "int": "number", "float": "number", "bool": "yes or no"}.get(
        type(value).__name__, type(value).__name__
    )
