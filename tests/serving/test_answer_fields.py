"""Adding a field to the list of answer fields is one line: both protocols, the document and the prediction log follow."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
from serving.protocol.codec_v1 import V1, answer_text, encode_answer
from serving.protocol.codec_v2 import V2, outputs_of
from serving.protocol.openapi import document
from serving.protocol.requests import RequestParser
from serving.scorer import Answer
from serving.telemetry.prediction_log import PredictionLog, ServedRequest
from tests.serving.small import SCHEMA
from tests.serving.test_prediction_log import answered, config
from thinktwice.monitor.record import HEAD, log_schema
from thinktwice.records import served as columns
from thinktwice.records.answer import Answered, Corrected, Scored, answer_fields, logged_columns, per_request, per_row
from thinktwice.records.served import PART


@dataclass(frozen=True, kw_only=True)
class Longer(Scored):
    """The list with two lines more."""

    evidence_age: tuple[float, ...] = per_row(
        "number", "Seconds since the item was seen.", column="log_evidence_age", minimum=0
    )
    arm: str = per_request("text", "Arm that served.", v2=("flag", "parameter"), column="log_served_arm")


@dataclass(frozen=True, kw_only=True)
class LongerCorrected(Longer, Corrected):
    """What a model that reads counters tells, and the two lines more."""


def longer(*, raw: bool, order: tuple[int, ...] = (1, 0)) -> Longer:
    nothing: dict[str, Any] = {"item_ids": None, "cold_items": (), "stale_items": ()} if raw else {}
    own = {f.name: getattr(answered(2, **nothing, bundle_hash="a" * 64), f.name) for f in dataclasses.fields(Answered)}
    return Longer(**own, order=order, evidence_age=(1.5, 2.5), arm="b")


def schema_of(name: str) -> dict[str, Any]:
    found = document(SCHEMA, "ctr", "v", online=True, answer=Longer)
    return {"$ref": f"#/components/schemas/{name}", "components": found["components"]}


@pytest.mark.parametrize("raw", [False, True])
def test_a_new_field_is_in_v1_and_its_document(raw: bool) -> None:
    prediction = encode_answer(longer(raw=raw))
    entries = prediction["rows" if raw else "items"]
    assert [entry["evidence_age"] for entry in entries] == [2.5, 1.5]
    assert prediction["arm"] == "b"
    body = json.loads(
        V1(RequestParser(SCHEMA, online=True)).read({"instances": [{"rows": [{}]}]}).encode([longer(raw=raw)])[0]
    )
    jsonschema.validate(body, schema_of("V1Answer"))
    for holder in (body["predictions"][0], body["predictions"][0]["rows" if raw else "items"][0]):
        lacking = holder.pop("arm", None) or holder.pop("evidence_age")
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body, schema_of("V1Answer"))
        holder["arm" if lacking == "b" else "evidence_age"] = lacking


WORDS = st.text(alphabet='ab",\\\n é\x01\U0001f600', max_size=4)
NUMBERS = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1e-310])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 5), st.booleans(), st.booleans())
def test_the_text_of_an_answer_is_that_of_its_fields(data: st.DataObject, rows: int, raw: bool, alike: bool) -> None:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "text": WORDS,
        "texts": st.lists(WORDS, max_size=2).map(tuple),
        "number": NUMBERS,
        "integer": st.integers(-3, 10**12),
        "boolean": st.booleans(),
    }
    fields: dict[str, Any] = {}
    for field in answer_fields(LongerCorrected):
        values = kinds[field.kind]
        if field.rows:
            values = st.lists(values, min_size=rows, max_size=rows).map(tuple)
            if alike:
                values = kinds[field.kind].map(lambda value: (value,) * rows)
        fields[field.name] = data.draw(values)
    order = data.draw(st.permutations(range(rows)) if rows else st.just([]))
    order = data.draw(st.sampled_from([tuple(range(rows)), tuple(order[: max(rows - 1, 0)])]))
    if raw:
        fields |= {"item_ids": None, "cold_items": (), "stale_items": ()}
    answer = LongerCorrected(**fields, order=order)
    assert answer_text(answer) == orjson.dumps(encode_answer(answer))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_a_new_field_is_in_v2_and_its_document(raw: bool, binary: bool) -> None:
    protocol = V2(RequestParser(SCHEMA, online=True), "ctr", "v", Longer)
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1], "data": ['{"rows": [{}]}']}
    output = {"name": "evidence_age", "parameters": {"binary_data": binary}}
    text, tail = protocol.read({"inputs": [tensor], "outputs": [output]}).encode([longer(raw=raw)])
    body = json.loads(text)
    (found,) = body["outputs"]
    assert (found["datatype"], found["shape"]) == ("FP64", [2])
    assert (np.frombuffer(tail).tolist() if binary else found["data"]) == [2.5, 1.5]
    assert body["parameters"]["arm"] == json.loads(body["parameters"]["flags"])[0]["arm"] == "b"
    jsonschema.validate(body, schema_of("V2Answer"))
    every = json.loads(protocol.read({"inputs": [tensor]}).encode([longer(raw=raw)])[0])
    assert [o["name"] for o in every["outputs"]] == list(outputs_of(Longer))
    jsonschema.validate(every, schema_of("V2Answer"))


def test_a_new_field_is_logged(tmp_path: Path) -> None:
    log = PredictionLog(SCHEMA, config(tmp_path), answer=Longer)
    for raw in (False, True):
        items: list[dict[str, Any]] = [{}, {}]
        log.offer(ServedRequest(f"r{raw}", 0.0, "a", None, {}, items, longer(raw=raw)))
    log.close()
    (part,) = tmp_path.glob(PART)
    table = pq.read_table(part)
    assert table["log_evidence_age"].to_pylist() == [1.5, 2.5] * 2
    assert set(table["log_served_arm"].to_pylist()) == {"b"}
    assert table.schema.remove_metadata().names == log_schema(SCHEMA, answer=Longer).names


def test_the_list_and_what_is_made_of_it_today() -> None:
    names = [f.name for f in answer_fields(Answered)]
    assert names == [f.name for f in answer_fields(Answer)]
    assert set(names) == {f.name for f in dataclasses.fields(Answered)}
    assert logged_columns() == HEAD and {name: type for name, type in HEAD.items() if pa.types.is_null(type)} == {}
    constants = {value for name, value in vars(columns).items() if name.isupper() and isinstance(value, str)}
    outside = {"label", *columns.EXPOSURE_ADDS.names, *columns.OUTCOME_ADDS.names}
    of_counters = {columns.COUNTERS}  # in the log of a model that reads counters
    assert {value for value in constants if value.startswith("log_")} - outside <= {*HEAD, *of_counters}


#: Where the server uses regular expressions, and on what: none on the text of an error.
EXPRESSIONS = {
    "adapters/java_queue.py": "a log",
    "adapters/torchserve_protocol.py": "bytes of the wire",
    "cli.py": "arguments of the command line",
    "deadline.py": "a header",
    "feedback/event_log.py": "names of files",
    "gateway/binary.py": "the version of a program",
    "gateway/file.py": "the form of a token",
    "load/drive.py": "bytes of answers",
    "local/java.py": "output of java",
    "local/processes.py": "a log",
    "local/torchserve_process.py": "paths and a log",
}


def test_no_text_of_an_error_is_taken_apart() -> None:
    """Faults carry their location, value and reason; nothing searches, splits or compares the text of an exception."""
    root = Path(serving.__file__).parent
    wrong = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if "re" in imported and name not in EXPRESSIONS:
            wrong.append(f"{name} uses regular expressions")
        caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Compare, ast.Subscript)) else ""
            for error in caught:
                if re.match(
                    rf"str\({error}\)(\.(?!split\(\))|\[)|.* in str\({error}\)$|re\.\w+\(.*str\({error}\)", text
                ):
                    wrong.append(f"{name}:{node.lineno} takes the text of an error apart: {text}")
    assert wrong == []
    assert not (root / "protocol").joinpath("v2_fields.py").read_text(encoding="utf-8").count("import re\n")
