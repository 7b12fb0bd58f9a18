"""Faults of a request: location, value and reason. Each protocol renders the location once, in its own notation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from thinktwice.errors import Location, RequestError

SHOWN = 64  # characters of a key or a value in a message
T = TypeVar("T")
Render = Callable[[Location], str]
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


class Fault(Exception):  # noqa: N818 (internal to the protocol: converted to a RequestError)
    """One fault of a request.

    Attributes:
        loc: keys and indices of the invalid value, relative to the checked value.
        value: the invalid value, None if it is absent.
        reason: the problem; it follows the path in the message.
        kind: the rule that is violated.
        name: of the invalid value, if the location does not contain it.
    """

    def __init__(self, loc: Location, reason: str, value: Any = None, *, kind: str = "value", name: str = "") -> None:
        super().__init__(reason)
        self.loc, self.value, self.reason, self.kind, self.name = loc, value, reason, kind, name

    def at(self, loc: Location, name: str = "") -> Fault:
        """The same fault at another location, such as that of the value in its original document."""
        return Fault(loc, self.reason, self.value, kind=self.kind, name=name or self.name)

    def below(self, *prefix: str | int) -> Fault:
        """The same fault, located in an enclosing value."""
        return self.at((*prefix, *self.loc))

    def error(self, render: Render) -> RequestError:
        """The error for the caller."""
        path = render(self.loc)
        message = f"{path} {f'({shortened(self.name)}) ' if self.name else ''}{self.reason}"
        return RequestError(message, field=path, loc=self.loc, value=self.value, reason=self.reason, kind=self.kind)


def json_path(root: str = "") -> Render:
    """Locations in a JSON document as paths: ``instances[0].candidates[3]``."""

    def render(loc: Location) -> str:
        path = root
        for part in loc:
            if isinstance(part, int):
                path += f"[{part}]"
            else:
                path += f"{'.' if path else ''}{shortened(part)}"
        return path or "body"

    return render


def custom(kind: str, reason: str) -> PydanticCustomError:
    """An error that a validator raises; ``kind`` names the rule."""
    return PydanticCustomError(kind, "{reason}", {"reason": reason})


def shortened(text: str) -> str:
    """A text of the caller, short enough for a message."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def kind_of(value: Any) -> str:
    """JSON type of a value, with an article."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


@dataclass(frozen=True)
class Words:
    """Texts of messages by key.

    Attributes:
        elements: the elements of a list under the key.
        missing: what to send when the key is missing.
        unknown: why the key is not accepted.
    """

    elements: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


class Checked(Generic[T]):
    """Validator of a type, which raises faults instead of pydantic errors.

    Args:
        kind: the type.
        words: texts of its messages.
    """

    def __init__(self, kind: Any, words: Words) -> None:
        self._kind, self._words = kind, words
        self._validate: Callable[[Any], T] = TypeAdapter(kind).validator.validate_python

    def read(self, value: Any) -> T:
        """Validate a value and return it as parsed by the type.

        Raises:
            Fault: the most informative one: an unknown key (it may be misspelled), else the first in the order of the type.
        """
        try:
            return self._validate(value)
        except ValidationError as error:
            details = error.errors(include_url=False)
        detail = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
        loc, _ = _follow(self._kind, detail["loc"])
        _, parent = _follow(self._kind, detail["loc"][:-1])
        reason = _reason(detail, loc, _keys(parent), self._words)
        raise Fault(loc, reason, detail["input"], kind=detail["type"])


def _follow(kind: Any, loc: Location) -> tuple[Location, Any]:
    """A location without the tags of unions, and the type at this location."""
    clean: list[str | int] = []
    for part in loc:
        kind = _bare(kind)
        if get_origin(kind) in (Union, UnionType):
            kind = next(option for option in get_args(kind) if Tag(str(part)) in getattr(option, "__metadata__", ()))
            continue
        clean.append(part)
        kind = _parts(kind).get(part) if isinstance(part, str) else next(iter(get_args(kind)), None)
    return tuple(clean), _bare(kind)


def _bare(kind: Any) -> Any:
    """A type without annotations and without ``| None``."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind):
            (kind,) = (option for option in get_args(kind) if option is not NoneType)
        else:
            return kind


def _parts(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return dict(getattr(kind, "__annotations__", {}))


def _keys(kind: Any) -> list[str]:
    """Keys of an object, without those that can only be null."""
    return sorted(name for name, annotation in _parts(kind).items() if annotation not in (None, NoneType))


def _reason(detail: ErrorDetails, loc: Location, known_keys: list[str], words: Words) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key = next((part for part in reversed(loc) if isinstance(part, str)), "")
    elements = words.elements.get(key, "elements")
    match kind:
        case "missing":
            return f"is missing: {hint}" if (hint := words.missing.get(key)) else "is missing"
        case "extra_forbidden" | "none_required":
            why = f" ({hint})" if (hint := words.unknown.get(key)) else ""
            return f"is an unknown key{why}: known are {', '.join(known_keys)}"
        case "model_type" | "dict_type":
            return f"must be an object, not {kind_of(value)}"
        case "list_type":
            return f"must be a list of {elements}, not {kind_of(value)}"
        case "too_short":
            return f"has {context['actual_length']} {elements}, at least {context['min_length']} are needed"
        case "too_long":
            return f"has {context['actual_length']} {elements}, at most {context['max_length']} are accepted"
        case "string_type":
            return f"must be a string, not {kind_of(value)}"
        case "string_too_short":
            return "must not be empty"
        case "bool_type":
            return f"must be true or false, not {shown(value)}"
        case "int_type" | "float_type":
            return f"must be {'an integer' if kind == 'int_type' else 'a number'}, not {shown(value)}"
        case "literal_error":
            return f"must be {context['expected']}, not {shown(value)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {shown(value)}"
        case "less_than_equal":
            return f"must be at most {context['le']}, not {shown(value)}"
        case "greater_than":
            return f"must be above {context['gt']:g}, not {shown(value)}"
        case "less_than":
            return f"must be below {context['lt']:g}, not {shown(value)}"
        case _:
            return str(context.get("reason", detail["msg"]))


def shown(value: Any) -> str:
    """A value of the caller for a message: short texts and numbers verbatim, otherwise only the type."""
    if isinstance(value, str):
        return repr(shortened(value))
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
        return "true" if value is True else "false" if value is False else f"{value}"
    return kind_of(value)
