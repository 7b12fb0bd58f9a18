"""A key that stands twice in one object is refused wherever it stands and however it is written; everything else is JSON as ever."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocol import json_text
from serving.protocol.faults import Fault, json_path

KEYS = st.sampled_from(["a", "b", "instances", ":", '":', "é", "\n:", ""]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=3
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from(["x", ":y", '":', " :", 'a":b', "2024-03-01 10:00:00", "urn:a:1", ""])
)


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may repeat."""


PAIRS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4).map(Pairs),
    max_leaves=12,
)
WRITTEN = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : "), (",\n", "\n:\n"), (",", ":\t")])


def write(value: Any, marks: tuple[str, str], escape: bool) -> str:
    comma, colon = marks
    if isinstance(value, Pairs):
        pairs = [f"{json.dumps(key, ensure_ascii=escape)}{colon}{write(inner, marks, escape)}" for key, inner in value]
        return "{" + comma.join(pairs) + "}"
    if isinstance(value, list):
        return "[" + comma.join(write(inner, marks, escape) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=escape)


def repeats(value: Any) -> bool:
    if isinstance(value, Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(inner) for _, inner in value)
    return isinstance(value, list) and any(map(repeats, value))


@settings(max_examples=600, deadline=None)
@given(PAIRS, WRITTEN, st.booleans(), st.booleans())
def test_every_repeated_key_is_found_and_no_other(
    value: Any, marks: tuple[str, str], escape: bool, as_text: bool
) -> None:
    text = write(value, marks, escape)
    given_ = text if as_text else text.encode()
    if repeats(value):
        with pytest.raises(Fault, match=r"is twice in one object: send it once") as refused:
            json_text.loads(given_)
        assert refused.value.error(json_path()).status == 400
        assert json.dumps(refused.value.loc[0])[1:-1] in json.dumps(json.loads(text, object_pairs_hook=list))
    else:
        assert json_text.loads(given_) == orjson.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"instances": [], "instances": []}', '{"instances": [{"k": 1, "k": 2}]}', '{"instances": [{"context": {"a": 1, "a": 1}}]}',
        '{"instances": [{"rows": [{}, {"a": 1, "b": 2, "a": null}]}]}', '{"\\u0061": 1, "a": 2}', '{"a":1,"b":{"c":{"d":{"e":1,"e":2}}}}',
        '{"a" :1, "a"\n:2}', '{"inputs": [{"parameters": {"k": ":", "k": 1}}]}', '[[[{"a": 1, "a": 1}]]]',
    ],
)  # fmt: skip
def test_places_of_a_repeated_key(text: str) -> None:
    with pytest.raises(Fault, match="twice in one object"):
        json_text.loads(text.encode())


@pytest.mark.parametrize("text", ["", "{", b"\xff", "{'a': 1}", '{"a": 1,}', '{"a": NaN}', "1e999"])
def test_what_is_not_json_is_named(text: str | bytes) -> None:
    with pytest.raises(Fault, match=r"^is not valid JSON: ") as refused:
        json_text.loads(text)
    error = refused.value.below("inputs", 0).error(json_path())
    assert (error.field, str(error)) == ("inputs[0]", f"inputs[0] {refused.value.reason}")


def test_what_is_nested_deeply_is_an_error_and_no_failure() -> None:
    deep = '{"a":":' + '","b":' + "[" * 1000 + "]" * 1000 + "}"
    try:
        json_text.loads(deep)
    except Fault as error:
        assert "nested too deep" in str(error) or "not valid JSON" in str(error)
    number = '{"a": ' + "9" * 5000 + ', "b": ":"}'
    assert json_text.loads('{"a": ' + "9" * 300 + ', "b": ":"}')["b"] == ":"
    with pytest.raises(Fault, match="not valid JSON"):
        json_text.loads(number)
