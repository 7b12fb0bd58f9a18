"""Strict JSON parser for requests: a repeated key in an object is an error."""

from __future__ import annotations

import json
from typing import Any

import orjson

from serving.protocol.faults import Fault


def loads(text: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        Fault: the text is not JSON, or an object has a repeated key.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Fault((), f"is not valid JSON: {error}", kind="not_json") from None
    if not _surely_single(text, value) and (key := _repeated(text)) is not None:
        raise Fault((key,), "is twice in one object: send it once", kind="repeated_key")
    return value


def _surely_single(text: bytes | str, value: Any) -> bool:
    """Whether the text surely contains no more keys than the parsed value.

    True if it has as many colons; or, if strings contain colons, as many colons right after a quote and none after white space.
    False means uncertain."""
    keys = _num_keys(value)
    if isinstance(text, str):
        if text.count(":") == keys:
            return True
        return text.count('":') == keys and not any(loose in text for loose in (" :", "\n:", "\t:", "\r:"))
    if text.count(b":") == keys:
        return True
    return text.count(b'":') == keys and not any(loose in text for loose in (b" :", b"\n:", b"\t:", b"\r:"))


def _num_keys(value: Any) -> int:
    """Number of keys in the objects of a request: in the request, its parts (instances, inputs, parameters) and their parts
    (context, rows). Deeper objects, which no valid request has, are not counted."""
    if type(value) is not dict:
        return 0
    count = len(value)
    for part in value.values():
        if type(part) is dict:
            count += len(part)
        elif type(part) is list:
            for element in part:
                if type(element) is not dict:
                    break
                count += len(element)
                for inner in element.values():
                    if type(inner) is dict:
                        count += len(inner)
                    elif type(inner) is list and inner and type(inner[0]) is dict:
                        count += sum([len(row) for row in inner if type(row) is dict])
    return count


def _repeated(text: bytes | str) -> str | None:
    """The first key that is repeated in an object; slow."""
    repeated: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            repeated.append(next(key for position, key in enumerate(keys) if key in keys[:position]))

    try:  # numbers are not needed, and very long ones would be rejected
        json.loads(text, object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError:
        raise Fault((), "is nested too deep", kind="not_json") from None
    return repeated[0] if repeated else None
