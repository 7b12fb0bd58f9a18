"""The published document and the check of the server accept the same bodies, for any schema of a log.

Where they differ the server refuses a body that validates, by a rule that JSON Schema has no words for. Those rules are listed
here, each with the values it is about and a body that shows it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from serving.protocol import json_text, values
from serving.protocol.codec_v1 import V1
from serving.protocol.codec_v2 import V2
from serving.protocol.openapi import document
from serving.protocol.requests import RequestParser
from tests.serving.small import SCHEMA
from thinktwice.errors import RequestError
from thinktwice.schema import LogSchema, parse_schema

#: Rules that JSON Schema cannot say: whether a value is what the rule is about.
BEYOND: dict[str, Callable[[Any], bool]] = {
    "inexact_id": lambda v: isinstance(v, float) and abs(v) >= 2**53,
    "number_out_of_range": lambda v: isinstance(v, str),
    "not_a_time": lambda v: isinstance(v, str),
    "time_out_of_range": lambda v: isinstance(v, str),
    "int_type": lambda v: isinstance(v, float) and v.is_integer(),
    "too_many_rows": lambda v: isinstance(v, list),
    "uneven_weights": lambda v: isinstance(v, list),
    "negative_weight": lambda v: isinstance(v, str),
}
#: The same of v2 bodies: how sizes, data and datatypes belong together, and one name per tensor.
BEYOND_V2: dict[str, Callable[[Any], bool]] = {
    **BEYOND,
    **dict.fromkeys(("shape", "datatype", "binary", "repeated_name"), lambda v: True),
}
EXAMPLES: list[tuple[str, Any]] = [
    ("inexact_id", {"user_id": 1e16, "candidates": ["a"]}),
    ("number_out_of_range", {"rows": [{"price": "1e301"}]}),
    ("number_out_of_range", {"rows": [{"cover": ["1e39", 0, 0]}]}),
    ("not_a_time", {"rows": [{"timestamp": "2024-02-30"}]}),
    ("time_out_of_range", {"rows": [{"timestamp": "2101-01-01"}]}),
    ("int_type", {"rows": [{}], "k": 3.0}),
    ("uneven_weights", {"rows": [{}, {"marks": ["a"], "mark_weights": [1, 2]}]}),
    ("uneven_weights", {"user_id": "a", "candidates": ["a"], "context": {"mark_weights": [1]}}),
    ("negative_weight", {"rows": [{"marks": ["a"], "mark_weights": ["-1"]}]}),
]


class Door:
    """One model's check and its document."""

    def __init__(self, schema: LogSchema, online: bool) -> None:
        self.schema, self.online = schema, online
        parser = RequestParser(schema, online=online, clock=lambda: 1.7e9)
        self.v1, self.v2 = V1(parser), V2(parser, "ctr", "v")
        self.document = document(schema, "ctr", "v", online=online)

    def fault(self, body: Any) -> RequestError | None:
        try:
            (self.v2 if "inputs" in body else self.v1).read(json_text.loads(orjson.dumps(body)))
        except RequestError as error:
            return error
        return None

    def validates(self, body: Any) -> bool:
        name = "V2Body" if "inputs" in body else "V1Body"
        whole = {"$ref": f"#/components/schemas/{name}", "components": self.document["components"]}
        return jsonschema.Draft202012Validator(whole).is_valid(body)


MARKS = {"name": "marks", "kind": "list", "length": 3, "weights": "mark_weights"}
_FIELDS = [f.model_dump(exclude_defaults=True) for f in SCHEMA.fields]
SMALL = Door(LogSchema.model_validate({**SCHEMA.model_dump(), "fields": [*_FIELDS, MARKS]}), True)


@pytest.mark.parametrize(("kind", "request_"), EXAMPLES)
def test_rules_that_json_schema_cannot_say(kind: str, request_: dict[str, Any]) -> None:
    body = {"instances": [request_]}
    found = SMALL.fault(body)
    assert SMALL.validates(body)
    assert found is not None and found.kind == kind and BEYOND[kind](found.value)


def test_the_rows_of_all_requests_are_limited_beyond_the_document() -> None:
    body = {"instances": [{"rows": [{}] * 1000}] * 6}
    found = SMALL.fault(body)
    assert found is not None and found.kind == "too_many_rows" and SMALL.validates(body)


def test_every_rule_of_values_that_is_listed_is_shown() -> None:
    assert set(values.BEYOND) <= set(BEYOND)
    assert {kind for kind, _ in EXAMPLES} | {"too_many_rows"} == set(BEYOND)


def test_a_time_within_half_a_microsecond_of_the_limits_is_accepted_and_does_not_validate() -> None:
    """The one difference the other way: times are rounded to microseconds before their limits are checked."""
    for seconds in (-4e-7, 4_102_444_800.0000005):
        body = {"instances": [{"rows": [{"timestamp": seconds}]}]}
        assert SMALL.fault(body) is None and not SMALL.validates(body)


NAMES = st.sampled_from(["a", "b", "timestamp", "candidates", "k", "rows", "user_key", "Context", "x" * 60])


@st.composite
def doors(draw: st.DrawFn) -> Door:
    user, item = draw(st.booleans()), draw(st.booleans())
    names = iter(draw(st.lists(NAMES, unique_by=str.lower, min_size=3, max_size=6)))
    entities = ["context", *(["user"] if user else []), *(["item"] if item else [])]
    fields: list[dict[str, Any]] = [
        {"name": next(names), "kind": draw(st.sampled_from(["categorical", "boolean", "numeric"]))}
    ]
    fields += [
        {
            "name": n,
            "kind": draw(st.sampled_from(["categorical", "boolean", "numeric"])),
            "entity": draw(st.sampled_from(entities)),
        }
        for n in names
    ]
    made: dict[str, Any] = {"name": "t", "time": {"column": "ts"}, "fields": fields, "entities": {}}
    made["time"]["zone"] = draw(st.sampled_from([None, "Asia/Tokyo"]))
    if user:
        made["entities"]["user"] = {"key": "user_id", "as_field": draw(st.booleans())}
    if item:
        made["entities"]["item"] = {"key": "item_id"}
        made["vectors"] = [{"name": "cover", "dim": 2}]
    if user and item:
        made["sequences"] = [{"name": "history", "of": "item_id"}]
    if draw(st.booleans()):
        fields.append({"name": "hour", "derived": "hour"})
    if draw(st.booleans()):
        fields.append(MARKS | {"entity": draw(st.sampled_from(entities))})
    return Door(parse_schema(json.dumps(made), where="test"), draw(st.booleans()))


ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 3.0, 0.5, -0.0, 1e16, 2.0**53, 2**64 - 1, 2**64, -(2**63) - 1, 1e300, 9.9e299, 3.5e38, 3.4e38, "",
     " ", "\n", "Yes", " tRUE\t", "off", "a", "é", "\x00", "a\x00", "1", " 1.5\n", "1e5", "1e301", "1e39", "nan", "1_0", "0x1", "2024-03-01", "2024-03-01T10:00:00Z\n",
     "2024-02-30", "2024-03-01 25:00", "2101-01-01", "1969-12-31T23:00:00Z", "20240301", "x" * 512, "x" * 513, [], {}, [None], [""],
     ["a"], [1, 2], [0.5, "1"], [True, 1e39], {"a": 1}, {"timestamp": 0}, 4102444800, 4102444801, 1e9, 999999999.5]
)  # fmt: skip
ANY = ODD | st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
IDS = (
    st.sampled_from(["a", "7", "é", "x" * 512])
    | st.integers(-(2**63), 2**64 - 1)
    | st.booleans()
    | st.floats(-1e6, 1e6)
)


@st.composite
def requests(draw: st.DrawFn, door: Door) -> dict[str, Any]:
    """A good request."""
    fields = door.schema.row_fields()
    when = "event_time" if any(f.name == "timestamp" for f in fields) else "timestamp"
    times = st.floats(0, 4.1e9) | st.sampled_from(["2024-03-01", "2024-03-01 10:00:00.5+09:00", " 2024-03-01T10Z "])

    def value(kind: str, dim: int, name: str) -> Any:
        if name in door.schema.boolean_fields:
            return draw(st.none() | st.sampled_from([True, False, 1, 0, 1.0, "Yes", " off\t", ""]))
        number = st.floats(-1e6, 1e6) | st.sampled_from(["1", " 2.5 ", "", True, 10**20])
        if kind == "categorical":
            return draw(st.none() | IDS | st.just(""))
        if kind == "numeric":
            return draw(st.none() | number)
        if kind == "sequence":
            return draw(st.none() | st.lists(IDS | st.just(""), max_size=3))
        if kind == "weights":
            return draw(st.none() | st.lists(st.floats(0, 1e6) | st.sampled_from([0, "1", True]), max_size=3))
        return draw(
            st.none() | st.lists(st.floats(-1e6, 1e6) | st.sampled_from(["1", True]), min_size=dim, max_size=dim)
        )

    out: dict[str, Any] = {}
    if door.online and door.schema.key_of("item") is not None and draw(st.booleans()):
        out["candidates"] = draw(st.lists(IDS, min_size=1, max_size=3))
        if door.schema.key_of("user") is not None:
            out["user_id"] = draw(IDS)
        given = {
            f.name: value(f.kind, f.dim, f.name) for f in fields if f.entity == "context" and f.origin == "attribute"
        }
        fit_weights(given)
        out["context"] = {n: v for n, v in given.items() if draw(st.booleans()) or n == "marks"}
        if draw(st.booleans()):
            out["context"][when] = draw(times)
    else:
        row = {f.name: value(f.kind, f.dim, f.name) for f in fields if draw(st.booleans())}
        fit_weights(row)
        if draw(st.booleans()):
            row[when] = draw(times)
        out["rows"] = [row, {}][: draw(st.integers(1, 2))]
    for name, some in (("k", st.integers(1, 2**64 - 1)), ("deadline_ms", st.floats(0.1, 1e6))):
        if draw(st.booleans()):
            out[name] = draw(st.none() | some)
    for name in ("rows", "candidates", "context"):
        if draw(st.integers(0, 5)) == 0:
            out.setdefault(name, None)
    return out


def fit_weights(values: dict[str, Any]) -> None:
    """As many weights as elements, or none."""
    weights, elements = values.get("mark_weights"), values.get("marks") or []
    if weights:
        values["mark_weights"] = (weights * 3)[: len(elements)]


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Containers and their keys, over the whole value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            places(value[key], found)
    return found


def mutate(draw: st.DrawFn, body: dict[str, Any], door: Door) -> None:
    fields = [f.name for f in door.schema.row_fields()]
    names = [
        *fields,
        "timestamp",
        "event_time",
        "user_id",
        "candidates",
        "context",
        "rows",
        "k",
        "deadline_ms",
        "instances",
        "new",
    ]
    holder, key = draw(st.sampled_from(places(body, [])))
    match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "repeat"])):
        case "replace":
            holder[key] = copy.deepcopy(draw(ANY))
        case "remove":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(names))] = copy.deepcopy(draw(ANY))
        case "add":
            holder.insert(key, copy.deepcopy(draw(ANY)))
        case _ if isinstance(holder, list):
            holder.extend([holder[key]] * draw(st.sampled_from([1, 99, 100, 999, 1000])))


def agrees(door: Door, body: dict[str, Any], beyond: dict[str, Callable[[Any], bool]]) -> None:
    found, valid = door.fault(body), door.validates(body)
    event(f"{'good' if found is None else found.kind}, {'valid' if valid else 'not valid'}")
    if found is None:
        assert valid
    elif valid:
        assert found.kind in beyond and beyond[found.kind](found.value), (found, found.kind, found.value)


def numbers_as_sent(body: Any) -> Any:
    """What a client's validator sees of integers that the reader of the server turns into floats: the same."""
    return json.loads(json.dumps(body), parse_int=lambda text: orjson.loads(text))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_v1_body_is_accepted_if_and_only_if_it_validates(data: st.DataObject) -> None:
    door = data.draw(doors())
    for _ in range(2):
        body: dict[str, Any] = {"instances": data.draw(st.lists(requests(door), min_size=1, max_size=2))}
        body = numbers_as_sent(body)
        assert door.fault(body) is None and door.validates(body), (door.fault(body), body)
        for _ in range(data.draw(st.integers(1, 3))):
            if body:
                mutate(data.draw, body, door)
        agrees(door, numbers_as_sent(body), BEYOND)


FIELDS = [
    {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["u1"]},
    {"name": "candidates", "datatype": "BYTES", "shape": [2], "data": ["i1", "i2"]},
    {"name": "bid", "datatype": "FP64", "shape": [1], "data": [0.5]},
]
ROWS = [
    {"name": "price", "datatype": "FP32", "shape": [2], "data": [0.5, None]},
    {"name": "cover", "datatype": "FP32", "shape": [2, 3], "data": [[0, 1, 2], [0, 1, 2]]},
]
V2_PARTS = st.sampled_from(
    [None, True, 0, 1, -1, 2.0, "", "x", "BYTES", "INT64", "ctr", "v", "request", "price", "rank", [], [1], [2], [0], {}, {"name": "rank"},
     {"name": "x"}, {"binary_data": True}, {"binary_data_output": False}, {"k": 2}, {"binary_data_size": None}, {"binary_data_size": 4}]
)  # fmt: skip
KEYS = [
    "id",
    "model_name",
    "model_version",
    "parameters",
    "inputs",
    "outputs",
    "name",
    "datatype",
    "shape",
    "data",
    "k",
    "new",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_v2_body_that_is_accepted_validates_and_its_envelope_is_refused_by_both(data: st.DataObject) -> None:
    """Whatever is wrong with requests within texts and tensors is beyond the document of the body."""
    requests = [json.dumps({"user_id": "u", "candidates": ["a"]}), json.dumps({"rows": [{}]})]
    texts = [{"name": "request", "datatype": "BYTES", "shape": [2], "data": requests}]
    body: dict[str, Any] = {"inputs": copy.deepcopy(data.draw(st.sampled_from([texts, FIELDS, ROWS])))}
    body |= data.draw(st.sampled_from([{}, {"id": "1", "outputs": [{"name": "rank"}], "parameters": {"k": None}}]))
    for _ in range(data.draw(st.integers(0, 3))):
        if body:
            holder, key = data.draw(st.sampled_from(places(body, [])))
            part = copy.deepcopy(data.draw(V2_PARTS))
            if isinstance(holder, dict) and data.draw(st.booleans()):
                key = data.draw(st.sampled_from(KEYS))
            holder[key] = part
    if "inputs" in body:
        found, valid = SMALL.fault(body), SMALL.validates(body)
        envelope = found is not None and (found.kind in BEYOND_V2 or "data[" in found.field or is_of_a_request(found))
        assert valid if found is None else envelope or not valid, (found, found.kind if found else "")


def is_of_a_request(found: RequestError) -> bool:
    """Whether tensors by field are no request together (a missing one, too many candidates), each being one by itself."""
    match found.loc:
        case ("inputs", str()):
            return True
        case ("inputs", int()):
            return found.kind != "model_type"
        case _:
            return False
