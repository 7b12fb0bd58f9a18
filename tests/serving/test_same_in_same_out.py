"""A value means the same in training and in every form of a request, whatever type holds it; and both take the same values.

The log goes the way of every log: a parquet file, ingest, validation, a training set, a bundle; requests go through the service.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.protocol import json_text
from serving.protocol.codec_v1 import V1
from serving.protocol.codec_v2 import V2, is_v2
from serving.protocol.requests import Request, RequestParser
from serving.protocol.v2_tensors import HEADER, split
from serving.service import Service
from tests.schema.arrow_values import EVERY, KINDS, NUMPY, Made
from tests.serving.fakes import make_service
from tests.serving.request_forms import Body, context_forms, json_values, rows_forms
from tests.serving.small import make_bundle
from tests.validate.raw import write_raw
from thinktwice.data.encoder import Encoder
from thinktwice.data.ingest import ingest
from thinktwice.errors import RequestError, SchemaError
from thinktwice.schema import LogSchema, parse_schema
from thinktwice.schema.columns import is_read
from thinktwice.schema.limits import is_inexact
from thinktwice.schema.numbers import number
from thinktwice.schema.values import spell
from thinktwice.validate.split import split_log

ONE_FIELD = "{{name: t, time: {{format: order}}, label: {{column: y}}, quarantine_budget: 1, fields: [{{name: x, kind: {kind}}}]}}"
SCHEMAS = {kind: parse_schema(ONE_FIELD.format(kind=kind), where="test") for kind in ("categorical", "numeric")}


def trained(folder: Path, array: pa.Array, kind: str) -> pl.DataFrame:
    """The clean rows of a log with one field, by the place of their row in ``array``."""
    raw = write_raw(folder / "raw", pl.DataFrame({"y": [1] * len(array)}), ONE_FIELD.format(kind=kind))
    log = pq.read_table(raw / "log.parquet")
    if (
        pa.types.is_dictionary(array.type) and array.type.value_type != pa.string()
    ):  # parquet has dictionaries of text alone
        array = array.dictionary_decode()
    pq.write_table(log.append_column("x", array), raw / "log.parquet")
    split_log(raw, folder / "clean", folder / "bad", run_id="r")
    clean = pl.read_parquet(folder / "clean/clean.parquet")
    return clean.with_columns(place=pl.col("event_time").dt.epoch("s"))


def parsed(body: Body, headers: dict[str, str], schema: LogSchema) -> Request:
    """A body as the service reads it."""
    parser = RequestParser(schema, online=False)
    if isinstance(body, dict):
        return V1(parser).read(body).requests[0]
    text, tail = split(body, headers.get(HEADER))
    found = json_text.loads(text)
    return (V2(parser, "ctr", "v") if is_v2(found) else V1(parser)).read(found, tail).requests[0]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=EVERY, kind=st.sampled_from(["categorical", "numeric"]))
def test_a_value_has_one_index_in_training_and_in_every_form_of_a_request(
    tmp_path_factory: pytest.TempPathFactory, made: Made, kind: str
) -> None:
    array, values = made
    schema = SCHEMAS[kind]
    if not is_read(array.type, "number" if kind == "numeric" else "category"):
        with pytest.raises(SchemaError, match="cannot be read"):
            trained(tmp_path_factory.mktemp("log"), array, kind)
        return
    clean = trained(tmp_path_factory.mktemp("log"), array, kind)
    encoder = Encoder.fit(clean.to_arrow(), schema)
    index = dict(zip(clean["place"], encoder.encode_table(clean.to_arrow()).ids[:, 0].tolist(), strict=True))
    for place, value in enumerate(values):
        for form, body, headers in rows_forms("x", array.type, value):
            if kind == "numeric" and not _same_number(value, form):
                continue
            if "text" in form and _is_infinite(
                value
            ):  # the text "inf" is a category, the number is no value of any field
                continue
            try:
                request = parsed(body, headers, schema)
            except RequestError as error:
                assert error.status == 400
                refused_in_training = place not in index
                too_large = kind == "categorical" and is_inexact(value) and "text" not in form
                assert refused_in_training or too_large, (form, value, str(error))
                continue
            assert place in index, (form, value, "training refused what a request takes")
            assert request.rows is not None
            assert encoder.encode_rows(request.rows).ids[0, 0].item() == index[place], (form, value)
            assert index[place] > 0 or spell(value) is None, "training saw it"


def _is_infinite(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and bool(np.isinf(value))


def _same_number(value: Any, form: str) -> bool:
    """Whether a form holds the number that the value is. Text is one only as far as the spelling of the value is that number: a duration
    is no number, and its spelling is."""
    if isinstance(value, (str, bytes)) or not ("text" in form or "BYTES" in form):
        return True
    try:
        return number(value) == number(spell(value))
    except ValueError:
        return False


SCALARS: st.SearchStrategy[Any] = (
    st.text(max_size=6)
    | st.sampled_from(["x" * 512, "x" * 513, "é" * 512, "\x00", "\ud800", "42", "1e3", " 7 ", "1e300", "9e299", "nan"])
    | st.integers(-(2**65), 2**66)
    | st.floats()
    | st.booleans()
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=SCALARS, kind=st.sampled_from(["categorical", "numeric"]))
def test_what_a_request_takes_could_have_been_trained(
    tmp_path_factory: pytest.TempPathFactory, value: Any, kind: str
) -> None:
    try:
        request = RequestParser(SCHEMAS[kind], online=False).parse({"rows": [{"x": value}]}, "r")
    except RequestError:
        return
    assert request.rows is not None
    own = (
        pa.uint64()
        if type(value) is int and 2**63 <= value < 2**64
        else pa.decimal128(38, 0)
        if type(value) is int
        else None
    )
    clean = trained(tmp_path_factory.mktemp("log"), pa.array([value], own), kind)
    assert clean["x"].to_list() == [request.rows[0]["x"] or (None if kind == "categorical" else request.rows[0]["x"])]


VECTORS = parse_schema("{name: t, time: {format: order}, label: {column: y}, vectors: [{name: v, dim: 2}], entities: {item: {key: i}}}", where="test")  # fmt: skip
ENTRIES = (
    st.floats(width=32)
    | st.floats()
    | st.sampled_from([3.4028235677973366e38, 3.4028235677973362e38, 1e39, -1e300])
    | st.integers(-5, 5)
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vector=st.lists(ENTRIES, min_size=1, max_size=3))
def test_vectors_are_taken_by_both_or_by_none(tmp_path_factory: pytest.TempPathFactory, vector: list[float]) -> None:
    floats = [float(v) for v in vector]
    folder = tmp_path_factory.mktemp("log")
    raw = write_raw(folder / "raw", pl.DataFrame({"y": [1], "i": ["a"], "v": [floats]}), VECTORS.to_yaml())
    split_log(raw, folder / "clean", folder / "bad", run_id="r")
    clean = pl.read_parquet(folder / "clean/clean.parquet")
    try:
        request = RequestParser(VECTORS, online=False).parse({"rows": [{"v": vector}]}, "r")
    except RequestError:
        assert clean.height == 0
        return
    assert request.rows is not None and clean.height == 1
    np.testing.assert_array_equal(np.array(request.rows[0]["v"], np.float32), clean["v"][0].to_numpy())


# The whole way, once, with a column of every type.

NAMES = {name: f"x{place}" for place, name in enumerate(sorted(KINDS)) if name != "null"}
ODD: dict[str, list[Any]] = {
    "float16": [0.2, 42.0, -0.5, 0.0001, 2049.0], "float32": [0.2, 42.0, 1e-7, 16777218.0, 123456.79], "float64": [0.2, 42.0, 1e-7, 1.7e18, 2.5],
    "bool": [True, False], "string": ["42", "42.0", "-0", "é", "e\u0301"], "binary": [b"p1", b"\xff\x00", b"0.2", "é".encode(), b"x" * 512],
}  # fmt: skip


def values_of(name: str) -> list[Any]:
    """Five values of a kind, always the same."""
    kind = KINDS[name][0]
    if name in ODD:
        found = ODD[name]
    elif pa.types.is_integer(kind):
        found = [0, 1, 42, 2 ** (kind.bit_width - 1) - 1, 7]
    elif pa.types.is_decimal(kind):
        found = [
            pa.scalar(text).cast(kind).as_py()
            for text in ("0", "0.5" if kind.scale else "3", "0.25" if kind.scale > 1 else "5")
        ]
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        found = pa.array([0, 1, 19783], pa.int32()).view(pa.date32()).cast(pa.timestamp("s")).cast(kind).to_pylist()
    elif pa.types.is_fixed_size_binary(kind):
        found = [b"abc", b"\xff00", b"0.2"]
    elif pa.types.is_time(kind) or pa.types.is_duration(kind):
        found = pa.array([0, 1000, 90_000], pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind).to_pylist()
    else:
        found = [
            "p1" if "string" in name else b"p1",
            "é" if "string" in name else "é".encode(),
            "7" if "string" in name else b"7",
        ]
    return found


def is_numeric(name: str) -> bool:
    kind = KINDS[name][0]
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


WHOLE = "\n".join(
    [
        "name: small",
        "time: {column: ts}",
        "quarantine_budget: 0",
        "entities: {user: {key: user_id}, item: {key: item_id}}",
        "fields:",
    ]
    + [f"- {{name: {column}}}" for column in NAMES.values()]
    + [f"- {{name: n{column}, column: {column}, kind: numeric}}" for name, column in NAMES.items() if is_numeric(name)]
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, pl.DataFrame, dict[str, list[Any]]]]:
    """A served model of a log that has a column of every type, its clean rows in the order of the log, and its values."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(3)
    rows = 400
    picked = {name: [values_of(name)[i % len(values_of(name))] for i in rng.permutation(rows)] for name in NAMES}
    columns = {NAMES[name]: pa.array(values, KINDS[name][0]) for name, values in picked.items()}
    log = pa.table(
        {
            "ts": pa.array(1_700_000_000 + 977 * np.arange(rows)), "label": pa.array(rng.integers(0, 2, rows)),
            "user_id": pa.array([float(u) for u in rng.integers(0, 30, rows)]), "item_id": pa.array(rng.integers(0, 60, rows).astype(np.float32)),
            **columns,
        }
    )  # fmt: skip
    pq.write_table(log, folder / "log.parquet")
    (folder / "schema.yaml").write_text(WHOLE, encoding="utf-8")
    ingest("parquet", folder / "log.parquet", folder / "schema.yaml", folder / "raw")
    result = split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
    assert result.rows_clean == rows, result
    clean = pl.read_parquet(folder / "clean/clean.parquet")  # in order of time, so of the log
    make_bundle(folder, parse_schema(WHOLE, where="test"), frame=clean)
    service = make_service(folder / "bundle")
    yield service, clean, picked
    service.close()


def probability(service: Service, body: Body, headers: dict[str, str]) -> float | str:
    """The first score of a request, or why it was refused."""
    reply = service.answer(body, headers)
    answer = json.loads(reply.body)
    if reply.status != 200:
        assert reply.status == 400, answer
        return str(answer["error"])
    if "outputs" in answer:
        return float(next(o["data"][0] for o in answer["outputs"] if o["name"] == "probability"))
    prediction = answer["predictions"][0]
    return float((prediction.get("rows") or prediction["items"])[0]["probability"])


@pytest.mark.parametrize("name", NAMES)
def test_a_value_has_one_score_in_training_and_in_every_form_of_a_request(
    world: tuple[Service, pl.DataFrame, dict[str, list[Any]]], name: str
) -> None:
    service, clean, picked = world
    encoder, engine = service.scorer.bundle.encoder, service.scorer.bundle.engine
    own = NUMPY.get(KINDS[name][0], lambda v: v)
    scores: dict[str, set[Any]] = {}
    for column in [NAMES[name], *([f"n{NAMES[name]}"] if is_numeric(name) else [])]:
        blank = clean.select(pl.lit(None).alias(f.name) if f.name != column else f.name for f in encoder.fields)
        table = encoder.encode_table(blank.to_arrow())
        for value in values_of(name):
            row = picked[name].index(value)
            expected = float(engine.score(table.batch(slice(row, row + 1))).probability[0])
            scores.setdefault(column, set()).add(expected)
            for form, body, headers in rows_forms(column, KINDS[name][0], own(value)):
                if column.startswith("n") and not _same_number(own(value), form):
                    continue
                found = probability(service, body, headers)
                if isinstance(found, str):
                    assert is_inexact(own(value)) and "ids beyond 64 bits must be strings" in found, (form, value)
                else:
                    assert found == expected, (form, value)
            if is_inexact(own(value)):
                continue
            one = {"user_id": "3", "candidates": ["7", "5"], "context": {"timestamp": 0}}
            asked = {
                probability(service, body, headers)
                for form, body, headers in context_forms(column, KINDS[name][0], own(value), one)
                if not column.startswith("n") or _same_number(own(value), form)
            }
            assert len(asked) == 1 and isinstance(asked.pop(), float), (name, value)
    assert all(len(found) >= min(2, len(values_of(name))) for found in scores.values()), (
        "different values are told apart"
    )


@pytest.mark.parametrize("user", [7, 7.0, "7", np.float32(7), np.int8(7), np.float64(7)])
def test_ids_are_found_in_every_form(world: tuple[Service, pl.DataFrame, dict[str, list[Any]]], user: Any) -> None:
    service, clean, _ = world
    assert "7" in clean["user_id"].to_list() and "7" in clean["item_id"].to_list()
    request = service.scorer.parser.parse({"user_id": user, "candidates": [user, "7"], "context": {}}, "r")
    assert (request.user_id, request.candidates) == ("7", ("7", "7"))
    encoder = service.scorer.bundle.encoder
    assert encoder.index_of("user_id", user) == encoder.index_of("user_id", "7") > 0
    (name, own), *_ = [found for found in json_values(user) if found[0] != "text"] or [("text", "7")]
    assert isinstance(
        probability(service, json.dumps({"instances": [{"user_id": own, "candidates": [own]}]}).encode(), {}), float
    ), name


BIG = [
    "9007199254740992.0",
    "1e16",
    "18446744073709551616",
    "-9223372036854775809",
    "12345678901234567890123",
    "1.7e18",
]
PLACES = {
    "user_id": '{"user_id": %s, "candidates": ["1"]}', "candidates[1]": '{"user_id": "1", "candidates": ["1", %s]}',
    "context.x1": '{"user_id": "1", "candidates": ["1"], "context": {"x1": %s}}', "rows[0].item_id": '{"rows": [{"item_id": %s}]}',
    "rows[0].x1": '{"rows": [{"x1": %s}]}',
}  # fmt: skip


@pytest.mark.parametrize("big", BIG)
@pytest.mark.parametrize("place", PLACES)
def test_a_number_that_stands_for_several_ids_is_refused(
    world: tuple[Service, pl.DataFrame, dict[str, list[Any]]], big: str, place: str
) -> None:
    service, _, _ = world
    one = PLACES[place] % big
    bodies = [
        f'{{"instances": [{one}]}}',
        json.dumps({"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1], "data": [one]}]}),
    ]
    bodies_in_python = [json.loads(bodies[0])]  # where whole numbers of any size stay whole
    for body in (*(b.encode() for b in bodies), *bodies_in_python):
        reply = service.answer(body, {})
        error = json.loads(reply.body)
        assert reply.status == 400 and error["field"].endswith(place)
        assert "ids beyond 64 bits must be strings" in error["error"]
    found = service.answer(f'{{"instances": [{PLACES[place] % json.dumps(big)}]}}'.encode(), {})
    assert found.status == 200, "as text it is an id"


@pytest.mark.parametrize(
    ("kind", "value", "fine"),
    [("FP64", 2.0**53, 2.0**53 - 1), ("FP32", 2.0**24, 2.0**24 - 1), ("FP16", 2048.0, 2047.0)],
)
def test_a_float_tensor_that_stands_for_several_ids_is_refused(
    world: tuple[Service, pl.DataFrame, dict[str, list[Any]]], kind: str, value: float, fine: float
) -> None:
    service, _, _ = world
    for number_, status in ((value, 400), (-value, 400), (fine, 200)):
        for form in (_json_tensor, _binary_tensor):
            body, headers = form(kind, number_)
            reply = service.answer(body, headers)
            assert reply.status == status, reply.body
            assert status == 200 or b"must be strings" in reply.body


def _json_tensor(kind: str, value: float) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"inputs": [{"name": "item_id", "datatype": kind, "shape": [1], "data": [value]}]}).encode(), {}


def _binary_tensor(kind: str, value: float) -> tuple[bytes, dict[str, str]]:
    tail = np.array([value], f"<f{int(kind[2:]) // 8}").tobytes()
    tensor = {"name": "item_id", "datatype": kind, "shape": [1], "parameters": {"binary_data_size": len(tail)}}
    text = json.dumps({"inputs": [tensor]}).encode()
    return text + tail, {HEADER: str(len(text))}
