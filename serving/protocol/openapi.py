"""What a predictor accepts and answers, as an OpenAPI 3.1 document made from the schema of its model and the limits of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from serving.protocol import codec_v2
from serving.protocol.requests import MAX_CANDIDATES, MAX_REQUESTS
from serving.protocol.v2_tensors import DATATYPES, HEADER, MAX_DIM_SIZE, MAX_TENSORS, SIZE, WANTED, WANTED_ALL
from thinktwice.schema import LogSchema, ModelField
from thinktwice.schema.limits import EARLIEST_US, INTEGERS, LATEST_US, MAX_SEQUENCE, MAX_TEXT, NUMBER_LIMIT
from thinktwice.schema.numbers import NUMBER
from thinktwice.schema.times import FORMS

MEDIA_TYPE = (
    "application/vnd.oai.openapi+json"  # a predict request that accepts this gets the document instead of scores
)
SCALARS = ["string", "integer", "number", "boolean"]
ID = {
    "description": 'Whole numbers within 64 bits; larger ones are strings. 42, 42.0 and "42" are the same.',
    "type": SCALARS,
    "minimum": INTEGERS[0],
    "maximum": INTEGERS[1],
    "maxLength": MAX_TEXT,
}
WHITE = r"[ \t\n\r\v\f]*"
STATUSES = {
    "400": "The request is wrong; `field` names where.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "Too many requests wait; `Retry-After` says when to come again.",
    "500": "The predictor failed.",
    "503": "The answer would be late, or the feature store does not answer; `Retry-After` says when to come again.",
}
AGAIN = ("429", "503")  # statuses with Retry-After
HEADERS = {
    "X-Request-Id": "Names the request in answers and logs.",
    "X-Request-Start": "`t=` and Unix seconds: when the caller sent it. Time in queues then counts against the deadline.",
    "X-Deadline-Ms": "Milliseconds from then within which the answer is of use; with 0 or less it is refused.",
    "traceparent": "W3C trace context; the predictor's spans go below it.",
}
ANSWER_HEADERS = {
    "X-Request-Id": "That of the request, or one made up.",
    "X-Ctr-Request-Id": "The same; TorchServe puts an id of its own into the other where the request has none.",
}
TIMING = {"Server-Timing": "Milliseconds by stage: queue, parse, features, encode, engine, respond, total."}
RETRY = {"Retry-After": "Seconds after which to come again."}
LENGTH = {HEADER.title(): "Bytes of the JSON in a body that has binary tensors behind it."}
BINARY = "application/octet-stream"


def document(schema: LogSchema, model_name: str, model_version: str, *, online: bool) -> dict[str, Any]:
    """The document of one model.

    Args:
        schema: of the model.
        model_name: as it stands in the path.
        model_version: shown as the version of the interface.
        online: whether candidates can be looked up; without, only raw rows are accepted.
    """
    forms = [{"$ref": "#/components/schemas/RowsRequest"}]
    if online and schema.key_of("item") is not None:
        forms.insert(0, {"$ref": "#/components/schemas/CandidatesRequest"})
    v1, v2 = f"/v1/models/{model_name}:predict", f"/v2/models/{model_name}/infer"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Click model {model_name} of the log {schema.name}", "version": model_version},
        "paths": {
            v1: {"post": _operation("predict", "KServe v1: scores the requests of a body.", "V1Body", "V1Answer")},
            v2: {
                "post": _operation(
                    "infer", "Open Inference v2: the same in tensors.", "V2Body", "V2Answer", binary=True
                )
            },
            "/v2/health/live": {"get": _health("live", "Whether the server runs.")},
            "/v2/health/ready": {"get": _health("ready", "Whether the server takes requests.")},
        },
        "components": {
            "schemas": {
                "CandidatesRequest": _candidates(schema),
                "RowsRequest": _rows(schema),
                "Request": {"anyOf": forms},
                "V1Body": _object(
                    {"instances": _list({"$ref": "#/components/schemas/Request"}, 1, MAX_REQUESTS)},
                    required=["instances"],
                ),
                "V1Answer": _object({"predictions": _list(_prediction(), 1, MAX_REQUESTS)}, required=["predictions"]),
                "V2Body": _v2_body(model_name, model_version),
                "V2Answer": _v2_answer(),
                "Error": _object(
                    {"error": {"type": "string"}, "field": {"type": "string"}}, required=["error", "field"]
                ),
            }
        },
    }


def _operation(name: str, summary: str, body: str, answer: str, *, binary: bool = False) -> dict[str, Any]:
    def content(schema: str, *, tensors: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        if tensors:  # JSON and what follows it: no schema tells
            found[BINARY] = {}
        return found

    length = LENGTH if binary else {}
    good = {
        "description": "Scores.",
        "headers": _headers(ANSWER_HEADERS | TIMING | length),
        "content": content(answer, tensors=binary),
    }
    bad = {
        code: {
            "description": text,
            "headers": _headers(ANSWER_HEADERS | (RETRY if code in AGAIN else {})),
            "content": content("Error"),
        }
        for code, text in STATUSES.items()
    }
    parameters = [
        {"name": header, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for header, text in (HEADERS | length).items()
    ]
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": content(body, tensors=binary)},
        "responses": {"200": good, **bad},
    }


def _headers(texts: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def _health(word: str, summary: str) -> dict[str, Any]:
    answer = _object({word: {"const": True}}, required="all")
    return {
        "operationId": word,
        "summary": summary,
        "responses": {"200": {"description": "It does.", "content": {"application/json": {"schema": answer}}}},
    }


def _candidates(schema: LogSchema) -> dict[str, Any]:
    fields = schema.model_fields_in_order()
    context = {f.name: _value(f) for f in fields if f.entity == "context" and f.origin == "attribute"}
    context[time_field(schema)] = _time(schema)
    properties: dict[str, Any] = {
        "candidates": _list({**ID, "minLength": 1}, 1, MAX_CANDIDATES),
        "context": {"anyOf": [_object(context), {"type": "null"}]},
        **_limits(),
    }
    required = ["candidates"]
    if schema.key_of("user") is not None:
        properties["user_id"] = {**ID, "minLength": 1}
        required.append("user_id")
    return _object(properties, required)


def _rows(schema: LogSchema) -> dict[str, Any]:
    row = {f.name: _value(f) for f in schema.model_fields_in_order()}
    row[time_field(schema)] = _time(schema)
    return _object({"rows": _list(_object(row), 1, MAX_CANDIDATES), **_limits()}, required=["rows"])


def time_field(schema: LogSchema) -> str:
    """The key that says when: a log may have a field called timestamp of its own."""
    return "event_time" if any(f.name == "timestamp" for f in schema.model_fields_in_order()) else "timestamp"


def _time(schema: LogSchema) -> dict[str, Any]:
    return {
        "description": f"Unix seconds, or text: {FORMS}; text without an offset is the time of the clocks in {schema.zone.name}. "
        "Now when absent.",
        "anyOf": [
            {"type": "number", "minimum": EARLIEST_US / 1e6, "maximum": LATEST_US / 1e6},
            {"type": "string"},
            {"type": "null"},
        ],
    }


def _limits() -> dict[str, Any]:
    return {
        "k": {"description": "Answer with the best k only, best first.", "type": ["integer", "null"], "minimum": 1},
        "deadline_ms": {
            "description": "Milliseconds from the sending within which the answer is of use.",
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1e9,
        },
    }


def _value(f: ModelField) -> dict[str, Any]:
    if f.kind == "numeric":
        return {
            "description": "A number; true and false are 1 and 0, a text must be a decimal number.",
            "type": ["number", "boolean", "string", "null"],
            "pattern": f"^{WHITE}({NUMBER[1:-1]})?{WHITE}$",
            "exclusiveMinimum": -NUMBER_LIMIT,
            "exclusiveMaximum": NUMBER_LIMIT,
        }
    if f.kind == "categorical":
        return {**ID, "type": [*SCALARS, "null"]}
    if f.kind == "sequence":
        return {"type": ["array", "null"], "items": ID, "maxItems": MAX_SEQUENCE}
    return {"type": ["array", "null"], "items": {"type": "number"}, "minItems": f.dim, "maxItems": f.dim}


def _prediction() -> dict[str, Any]:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    scores: dict[str, Any] = {
        "probability": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "uncertainty": share,
        "num_paths": {"type": "integer", "minimum": 1},
        "rank": {"type": "integer", "minimum": 1},
        "model_version": {"type": "string"},
    }
    every: dict[str, Any] = {
        "paths_capped": {"type": "boolean"},
        "model_version": {"type": "string"},
        "bundle_hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    }
    truth = {"type": "boolean"}
    item = _object({"item_id": {"type": "string"}, **scores, "cold": truth, "stale": truth}, required="all")
    row = _object({"row": {"type": "integer", "minimum": 0}, **scores}, required="all")
    flags = {
        "cold_user": truth,
        "stale_user": truth,
        "defaulted": {"type": "array", "items": {"type": "string"}},
        "default_features": {"type": "array", "items": {"enum": ["user", "item"]}},
    }
    return {
        "anyOf": [
            _object({"items": {"type": "array", "items": item}, **flags, **every}, required="all"),
            _object({"rows": {"type": "array", "items": row}, **every}, required="all"),
        ]
    }


def _v2_body(model_name: str, model_version: str) -> dict[str, Any]:
    texts = {
        **_list({"type": "string", "contentMediaType": "application/json"}, 1, MAX_REQUESTS),
        "description": "Each element is one Request as JSON text.",
    }
    text = _tensor({"const": codec_v2.INPUT}, {"const": "BYTES"}, texts, 1)
    field = {"type": "string", "minLength": 1, "not": {"const": codec_v2.INPUT}}
    values = {"type": "array", "description": "In row order, flat or nested as the shape says."}
    by_field = _tensor(field, {"enum": list(DATATYPES)}, values, 2)
    wanted = {
        "type": "object",
        "properties": {"name": {"enum": list(codec_v2.OUTPUTS)}, "parameters": _parameters(WANTED)},
        "required": ["name"],
        "additionalProperties": False,
    }
    return _object(
        {
            "id": {"type": ["string", "null"]},
            "model_name": {"enum": [model_name, None]},
            "model_version": {"enum": [model_version, None]},
            "parameters": _parameters(WANTED_ALL, _limits()),
            "inputs": {
                "description": (
                    "Requests as JSON texts; or one request in tensors by field: candidates [n] with user_id and context "
                    "fields [1], or raw rows with a tensor [n] per field, vectors [n, dim] and sequences [n, length] "
                    "padded with empty texts. Then k and deadline_ms stand in the parameters."
                ),
                "anyOf": [_list(text, 1, 1), _list(by_field, 1, MAX_TENSORS)],
            },
            "outputs": {"type": ["array", "null"], "items": wanted},
        },
        required=["inputs"],
    )


def _parameters(truth: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object of parameters, among which ``truth`` says whether data are binary."""
    return {
        "type": ["object", "null"],
        "properties": {truth: {"type": ["boolean", "null"]}, **(more or {})},
        "additionalProperties": False,
    }


def _tensor(name: dict[str, Any], datatype: dict[str, Any], data: dict[str, Any], sizes: int) -> dict[str, Any]:
    """A tensor whose data are in it, or behind the JSON."""
    shape = _list({"type": "integer", "minimum": 1, "maximum": MAX_DIM_SIZE}, 1, sizes)
    common = {"name": name, "datatype": datatype, "shape": shape}
    here = {"type": ["object", "null"], "properties": {SIZE: {"type": "null"}}, "additionalProperties": False}
    size = {SIZE: {"type": "integer", "minimum": 0}}
    behind = {"type": "object", "properties": size, "required": [SIZE], "additionalProperties": False}
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {**common, "data": data, "parameters": here},
                "required": [*common, "data"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {**common, "data": {"type": "null"}, "parameters": behind},
                "required": [*common, "parameters"],
                "additionalProperties": False,
            },
        ]
    }


def _v2_answer() -> dict[str, Any]:
    output = _object(
        {
            "name": {"enum": list(codec_v2.OUTPUTS)},
            "datatype": {"enum": sorted(set(codec_v2.OUTPUTS.values()))},
            "shape": _list({"type": "integer"}, 1, 1),
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
        required=["name", "datatype", "shape"],
    )
    return _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": output},
        },
        required=["model_name", "model_version", "parameters", "outputs"],
    )


def _object(properties: dict[str, Any], required: Sequence[str] | Literal["all"] = ()) -> dict[str, Any]:
    names = list(properties if required == "all" else required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _list(items: dict[str, Any], fewest: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}
