"""Weights of the elements of lists have one encoding in training, in tables to score and in every form of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.protocol import json_text
from serving.protocol.codec_v1 import V1
from serving.protocol.codec_v2 import V2, is_v2
from serving.protocol.requests import RequestParser
from serving.protocol.v2_tensors import HEADER, pack, split
from tests.data.lists_log import DESCRIBED
from thinktwice.data.encoder import Encoder
from thinktwice.data.scoring_rows import as_table, read_fields
from thinktwice.errors import DataError, RequestError
from thinktwice.schema import LogSchema
from thinktwice.schema.weights import SMALLEST

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]

CATEGORIES = ["t0", "t1", "42", "é"]
ELEMENTS = st.lists(
    st.tuples(
        st.sampled_from([*CATEGORIES, "neu", 42]),
        st.one_of(st.sampled_from([0, 0.0, 1, 0.1, 1e299, 5e-324, 3.5e38, 1e-30, True]), st.floats(0, 1e6)),
    ),
    max_size=4,
)


@cache
def fitted(schema: LogSchema) -> tuple[Encoder, pa.Schema]:
    columns = pa.schema(
        [
            ("user", pa.string()),
            ("item", pa.string()),
            *((n, pa.list_(pa.string())) for n in ("tags", "moods")),
            *((n, pa.list_(pa.float64())) for n in ("tag_weights", "mood_weights")),
        ]
    )
    size = len(CATEGORIES)
    lists = [[word] for word in CATEGORIES]
    values = {"user": ["u"] * size, "item": ["i"] * size, "tags": lists, "moods": lists}
    values |= {"tag_weights": [None] * size, "mood_weights": [None] * size}
    return Encoder.fit(pa.table(values, schema=columns), schema), columns


def tensors(name: str, values: list[Any], weights: list[float] | None, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """One raw row with a list and its weights as tensors; both rows end with missing values."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values] + ["", ""]
    parts: list[tuple[str, str, list[Any]]] = [(name, "BYTES", texts)]
    if weights is not None:
        parts.append((f"{name[:-1]}_weights", "FP64", [*(float(w) for w in weights), math.nan, math.nan]))
    inputs, tail = [], b""
    for of, kind, data in parts:
        described: dict[str, Any] = {"name": of, "datatype": kind, "shape": [1, len(data)]}
        if binary:
            raw = pack(kind, data)
            described["parameters"], tail = {"binary_data_size": len(raw)}, tail + raw
        else:
            described["data"] = [None if v != v else v for v in data]
        inputs.append(described)
    text = json.dumps({"inputs": inputs}).encode()
    return text + tail, ({HEADER: str(len(text))} if binary else {})


def forms(row: dict[str, Any], name: str) -> Iterator[tuple[str, Any, dict[str, str]]]:
    yield "python", {"instances": [{"rows": [row]}]}, {}
    yield "v1", json.dumps({"instances": [{"rows": [row]}]}).encode(), {}
    text = {"name": "request", "datatype": "BYTES", "shape": [1], "data": [json.dumps({"rows": [row]})]}
    yield "v2 text", json.dumps({"inputs": [text]}).encode(), {}
    for binary in (False, True):
        yield f"v2 fields {binary}", *tensors(name, row[name], row.get(f"{name[:-1]}_weights"), binary=binary)


@cache
def parser_of(schema: LogSchema) -> RequestParser:
    return RequestParser(schema, online=True)


def parsed(body: Any, headers: dict[str, str], schema: LogSchema) -> Any:
    parser = parser_of(schema)
    if isinstance(body, dict):
        return V1(parser).read(body).requests[0]
    text, tail = split(body, headers.get(HEADER))
    found = json_text.loads(text)
    return (V2(parser, "ctr", "v") if is_v2(found) else V1(parser)).read(found, tail).requests[0]


def oracle(encoder: Encoder, elements: list[tuple[Any, Any]], length: int) -> tuple[list[int], np.ndarray]:
    """Known elements with positive weights, and the weights over the largest."""
    kept = [(encoder.index_of("tags", word), float(w)) for word, w in elements]
    kept = [(i, w) for i, w in kept if i and w > 0]
    largest = max((w for _, w in kept), default=1.0)
    scaled = [(i, w / largest) if w / largest >= SMALLEST else (0, 0.0) for i, w in kept]
    scaled += [(0, 0.0)] * (length - len(scaled))
    return [i for i, _ in scaled], np.array([w for _, w in scaled], np.float32)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(elements=ELEMENTS, absent=st.sampled_from([False, False, False, None, "empty"]))
def test_weights_have_one_encoding_in_training_and_in_every_form_of_a_request(
    elements: list[tuple[Any, Any]], absent: Any
) -> None:
    schema, encoder, columns = DESCRIBED, *fitted(DESCRIBED)
    words = [word for word, _ in elements]
    weights = [float(w) for _, w in elements] if absent is False else None if absent is None else []
    table = {"user": ["u"], "item": ["i"], "moods": [[]], "mood_weights": [None]}
    table |= {"tags": [[str(word) for word in words]], "tag_weights": [weights]}
    expected = encoder.encode_table(pa.table(table, schema=columns))
    index, shares = oracle(encoder, [(w, 1) for w in words] if not weights else elements, 4)
    assert expected.sequences["tags"][0].tolist() == index
    assert expected.weights["tags"][0].tolist() == shares.tolist()
    row = {"tags": words} | ({} if weights is None else {"tag_weights": weights})
    for form, body, headers in forms(row, "tags"):
        request = parsed(body, headers, schema)
        found = encoder.encode_rows(request.rows)
        assert found.sequences["tags"][0].tolist() == index, form
        assert found.weights["tags"][0].tolist() == shares.tolist(), form
    rows = [{"user": "u", "item": "i", "moods": None, "mood_weights": None, "tag_weights": None} | row]
    scored = encoder.encode_table(read_fields(as_table(rows, schema, encoder), schema, encoder))
    assert scored.weights["tags"].tolist() == [shares.tolist()] and scored.sequences["tags"].tolist() == [index]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "INT64", "BYTES"])
def test_weights_of_any_datatype_are_the_numbers_of_their_fewest_digits(datatype: str) -> None:
    schema = DESCRIBED
    values = ["2", "1"] if datatype == "BYTES" else [2, 1] if datatype == "INT64" else [0.2, 0.1]
    raw = pack(datatype, values)
    inputs = [
        {"name": "moods", "datatype": "BYTES", "shape": [1, 2], "data": ["t0", "t1"]},
        {"name": "mood_weights", "datatype": datatype, "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}},
        {"name": "candidates", "datatype": "BYTES", "shape": [1], "data": ["i"]},
        {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["u"]},
    ]
    text = json.dumps({"inputs": inputs}).encode()
    context = parsed(text + raw, {HEADER: str(len(text))}, schema).context
    assert context["mood_weights"] == [float(v) for v in values]
    assert fitted(schema)[0].encode_rows([context]).weights["moods"][0, :2].tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("row", "path", "word"),
    [
        ({"tags": ["t0"], "tag_weights": [1, 2]}, "rows[0].tag_weights", "2 weights for 1 elements of 'tags'"),
        ({"tag_weights": [1]}, "rows[0].tag_weights", "1 weights for 0 elements"),
        ({"tags": ["t0"], "tag_weights": [-1]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": ["-0.5"]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": [None]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": ["x"]}, "rows[0].tag_weights[0]", "a number"),
        ({"tags": ["t0"], "tag_weights": [1e300]}, "rows[0].tag_weights[0]", "between"),
        ({"tags": ["t0"], "tag_weights": [math.nan]}, "rows[0].tag_weights[0]", "at least 0"),
        ({"tags": ["t0"], "tag_weights": 1}, "rows[0].tag_weights", "list"),
        ({"tags": ["t0"] * 4, "tag_weights": [1] * 5}, "rows[0].tag_weights", "at most 4"),
    ],
)
def test_wrong_weights_of_a_request_are_refused(row: dict[str, Any], path: str, word: str) -> None:
    schema = DESCRIBED
    with pytest.raises(RequestError) as caught:
        parsed({"instances": [{"rows": [row]}]}, {}, schema)
    assert str(caught.value).startswith(f"instances[0].{path} ") and word in str(caught.value)
    if row.get("tag_weights") == [1, 2]:
        body, headers = tensors("tags", ["t0"], [1, 2], binary=True)
        with pytest.raises(RequestError, match=r"inputs\[1\].*2 weights for 1"):
            parsed(body, headers, schema)
        one = {"user_id": "u", "candidates": ["i"], "context": {"moods": ["a"], "mood_weights": [1, 2]}}
        with pytest.raises(RequestError, match=r"instances\[0\].context.mood_weights has 2 weights for 1"):
            parsed({"instances": [one]}, {}, schema)


def test_absent_weights_are_no_missing_context() -> None:
    schema = DESCRIBED
    one = {"user_id": "u", "candidates": ["i"], "context": {"moods": ["a"]}}
    assert parsed({"instances": [one]}, {}, schema).missing == ()
    assert parsed({"instances": [one | {"context": {}}]}, {}, schema).missing == ("moods",)


def test_wrong_weights_of_a_table_are_refused() -> None:
    schema = DESCRIBED
    encoder, columns = fitted(schema)
    row = {"user": ["u"], "item": ["i"], "tags": [["t0"]], "moods": [[]], "mood_weights": [None]}
    for weights, word in (
        ([1.0, 2.0], "another number of weights"),
        ([-1.0], "at least 0"),
        ([math.inf], "at least 0"),
    ):
        with pytest.raises(DataError, match=word):
            read_fields(pa.table(row | {"tag_weights": [weights]}, schema=columns), schema, encoder)
        with pytest.raises(DataError, match="of 'tags': give one number of at least 0 for each element"):
            encoder.encode_table(pa.table(row | {"tag_weights": [weights]}, schema=columns))
    with pytest.raises(DataError, match="is negative"):
        as_table([{"tags": ["t0"], "tag_weights": [-1]}], schema, encoder)
    text = {"user": "u", "item": "i", "tags": "t0||42", "tag scores": "1|2|3", "moods": None, "mood_weights": None}
    read = encoder.encode_table(read_fields(as_table(pl.DataFrame(text), schema, encoder), schema, encoder))
    assert read.sequences["tags"][0, :2].tolist() == [encoder.index_of("tags", word) for word in ("t0", "42")]
    assert read.weights["tags"][0, :2].tolist() == [
        np.float32(1 / 3),
        1.0,
    ]  # the missing element takes its weight along
    for weights, word in (
        ("1|2", "another number of weights"),
        ("1|2|x", "'1.2.x' is not a list of numbers of at least 0"),
    ):
        with pytest.raises(DataError, match=word):
            read_fields(as_table(pl.DataFrame(text | {"tag scores": weights}), schema, encoder), schema, encoder)
    sources = as_table([{"tags": ["t0"], "tag scores": [2]}], schema, encoder)
    assert sources["tag_weights"].to_pylist() == [[2.0]]
