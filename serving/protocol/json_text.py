"""JSON of requests, strictly: a key that stands twice in one object is an error, and not the last one alone."""

from __future__ import annotations

import json
from typing import Any

import orjson

from serving.protocol.faults import Fault


def loads(text: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        Fault: it is not JSON, or an object has a key twice.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Fault((), f"is not valid JSON: {error}", kind="not_json") from None
    if not _surely_single(text, value) and (key := _repeated(text)) is not None:
        raise Fault((key,), "is twice in one object: send it once", kind="repeated_key")
    return value


def _surely_single(text: bytes | str, value: Any) -> bool:
    """Whether the text cannot hold more keys than the parsed value: it has as many colons, or, where strings hold some, as many
    colons right after a quote, and none after white space. False says nothing."""
    keys = _num_keys(value)
    if isinstance(text, str):
        if text.count(":") == keys:
            return True
        return text.count('":') == keys and not any(loose in text for loose in (" :", "\n:", "\t:", "\r:"))
    if text.count(b":") == keys:
        return True
    return text.count(b'":') == keys and not any(loose in text for loose in (b" :", b"\n:", b"\t:", b"\r:"))


def _num_keys(value: Any) -> int:
    """Keys of the objects that a request has: its own, those of its parts (instances, inputs, parameters) and of theirs (context,
    rows). Objects further down, which no request has, are left out."""
    if type(value) is not dict:
        return 0
    count = len(value)
    for part in value.values():
        if type(part) is dict:
            count += len(part)
        elif type(part) is list:
            for one in part:
                if type(one) is not dict:
                    break
                count += len(one)
                for inner in one.values():
                    if type(inner) is dict:
                        count += len(inner)
                    elif type(inner) is list and inner and type(inner[0]) is dict:
                        count += sum([len(row) for row in inner if type(row) is dict])
    return count


def _repeated(text: bytes | str) -> str | None:
    """The first key that an object has twice; slow."""
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            found.append(next(key for place, key in enumerate(keys) if key in keys[:place]))

    try:  # numbers are not looked at, and those of many digits would be refused
        json.loads(text, object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError:
        raise Fault((), "is nested too deep", kind="not_json") from None
    return found[0] if found else None
