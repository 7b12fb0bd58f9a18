"""JSON of requests, strictly: a key that stands twice in one object is an error, and not the last one alone."""

from __future__ import annotations

import json
from typing import Any

import orjson

from thinktwice.errors import RequestError

SHOWN = 64  # characters of a key in a message


def loads(text: bytes | str, what: str, field: str) -> Any:
    """Parse JSON.

    Args:
        what: names the text in messages.
        field: its place in the body.

    Raises:
        RequestError: it is not JSON, or an object has a key twice.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"{what} is not valid JSON: {error}", field=field) from None
    if not _surely_single(text, value) and (key := _repeated(text, what, field)) is not None:
        raise RequestError(f"{what} has the key {key[:SHOWN]!r} twice in one object: send it once", field=key[:SHOWN])
    return value


def _surely_single(text: bytes | str, value: Any) -> bool:
    """Whether as many colons follow a quote as the parsed objects have keys, and none follows white space.

    Then no object had more keys in the text. False says nothing: a colon may also stand at the start of a string.
    """
    if isinstance(text, str):
        colons, loose = text.count('":'), any(colon in text for colon in (" :", "\n:", "\t:", "\r:"))
    else:
        colons, loose = text.count(b'":'), any(colon in text for colon in (b" :", b"\n:", b"\t:", b"\r:"))
    return not loose and colons == _num_keys(value)


def _num_keys(value: Any) -> int:
    """Keys of all objects in a value; those of a list whose first element is no container are left out."""
    count, todo = 0, [value]
    while todo:
        one = todo.pop()
        if type(one) is dict:
            count += len(one)
            todo.extend([inner for inner in one.values() if type(inner) is dict or type(inner) is list])
        elif type(one) is list and one and (type(one[0]) is dict or type(one[0]) is list):
            todo.extend(one)
    return count


def _repeated(text: bytes | str, what: str, field: str) -> str | None:
    """The first key that an object has twice; slow."""
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            found.append(next(key for place, key in enumerate(keys) if key in keys[:place]))

    try:  # numbers are not looked at, and those of many digits would be refused
        json.loads(text, object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError:
        raise RequestError(f"{what} is nested too deep", field=field) from None
    return found[0] if found else None
