"""What is wrong with a request: where, which value, and why. Each protocol renders the location once, in its own notation."""

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


class Fault(Exception):  # noqa: N818 (never leaves the protocol: it becomes a RequestError)
    """One fault of a request.

    Attributes:
        loc: keys and indices that lead to it, from the value that was checked.
        value: what stands there, None where nothing does.
        reason: what is wrong, to be read after the place.
        kind: the rule that it breaks.
        name: of what stands there, where the location does not say it.
    """

    def __init__(self, loc: Location, reason: str, value: Any = None, *, kind: str = "value", name: str = "") -> None:
        super().__init__(reason)
        self.loc, self.value, self.reason, self.kind, self.name = loc, value, reason, kind, name

    def at(self, loc: Location, name: str = "") -> Fault:
        """The same fault at another location: that of the value in the document it came from."""
        return Fault(loc, self.reason, self.value, kind=self.kind, name=name or self.name)

    def below(self, *prefix: str | int) -> Fault:
        """The same fault of a part of a larger value."""
        return self.at((*prefix, *self.loc))

    def error(self, render: Render) -> RequestError:
        """The error that the caller gets."""
        place = render(self.loc)
        message = f"{place} {f'({shortened(self.name)}) ' if self.name else ''}{self.reason}"
        return RequestError(message, field=place, loc=self.loc, value=self.value, reason=self.reason, kind=self.kind)


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
    """What a value is, in the words of JSON."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


@dataclass(frozen=True)
class Words:
    """What messages say of keys, by their names.

    Attributes:
        elements: what a list under the key holds.
        missing: what to give where the key is missing.
        unknown: why the key does not belong there.
    """

    elements: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


class Checked(Generic[T]):
    """A type whose values are checked, with faults in place of the errors of the library.

    Args:
        kind: the type.
        words: for its messages.
    """

    def __init__(self, kind: Any, words: Words) -> None:
        self._kind, self._words = kind, words
        self._validate: Callable[[Any], T] = TypeAdapter(kind).validator.validate_python

    def read(self, value: Any) -> T:
        """The value as the type reads it.

        Raises:
            Fault: the one that explains the others: an unknown key (it may be a misspelled one), else the first in the order of
                the type.
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
    """A location without the tags of unions, and the type there."""
    clean: list[str | int] = []
    for part in loc:
        kind = _bare(kind)
        if get_origin(kind) in (Union, UnionType):
            kind = next(one for one in get_args(kind) if Tag(str(part)) in getattr(one, "__metadata__", ()))
            continue
        clean.append(part)
        kind = _parts(kind).get(part) if isinstance(part, str) else next(iter(get_args(kind)), None)
    return tuple(clean), _bare(kind)


def _bare(kind: Any) -> Any:
    """A type without its annotations, and without None beside it."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind):
            (kind,) = (one for one in get_args(kind) if one is not NoneType)
        else:
            return kind


def _parts(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return dict(getattr(kind, "__annotations__", {}))


def _keys(kind: Any) -> list[str]:
    """Keys that an object may have; those that may only be null are not named."""
    return sorted(name for name, one in _parts(kind).items() if one not in (None, NoneType))


def _reason(detail: ErrorDetails, loc: Location, known: list[str], words: Words) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key = next((part for part in reversed(loc) if isinstance(part, str)), "")
    elements = words.elements.get(key, "elements")
    match kind:
        case "missing":
            return f"is missing: {hint}" if (hint := words.missing.get(key)) else "is missing"
        case "extra_forbidden" | "none_required":
            why = f" ({hint})" if (hint := words.unknown.get(key)) else ""
            return f"is an unknown key{why}: known are {', '.join(known)}"
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
    """A value of the caller in a message: short texts and numbers as they are, of others the kind alone."""
    if isinstance(value, str):
        return repr(shortened(value))
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
        return "true" if value is True else "false" if value is False else f"{value}"
    return kind_of(value)
