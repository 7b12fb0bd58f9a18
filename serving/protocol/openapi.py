"""OpenAPI 3.1 document of a predictor, made from the schema of its model and the limits of requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from serving.protocol.codec_v1 import V1, layout
from serving.protocol.codec_v2 import V2, outputs_of
from serving.protocol.requests import MAX_REQUESTS, RequestParser
from serving.protocol.v2_tensors import HEADER
from thinktwice.records.answer import AnswerField, Scored, answer_fields
from thinktwice.schema import LogSchema

MEDIA_TYPE = (
    "application/vnd.oai.openapi+json"  # a predict request that accepts this gets the document instead of scores
)
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


class _Untitled(GenerateJsonSchema):
    """Generates no titles, which would repeat the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document(
    schema: LogSchema, model_name: str, model_version: str, *, online: bool, answer: type = Scored
) -> dict[str, Any]:
    """The document of one model.

    Args:
        schema: of the model.
        model_name: the name of the model in the URL path.
        model_version: shown as the version of the interface.
        online: whether candidates can be looked up; if not, only raw rows are accepted.
        answer: class of the answers.
    """
    parser = RequestParser(schema, online=online)
    v1, v2 = V1(parser), V2(parser, model_name, model_version, answer)
    v1_path, v2_path = f"/v1/models/{model_name}:predict", f"/v2/models/{model_name}/infer"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Click model {model_name} of the log {schema.name}", "version": model_version},
        "paths": {
            v1_path: {"post": _operation("predict", "KServe v1: scores the requests of a body.", "V1Body", "V1Answer")},
            v2_path: {
                "post": _operation(
                    "infer", "Open Inference v2: the same in tensors.", "V2Body", "V2Answer", binary=True
                )
            },
            "/v2/health/live": {"get": _health("live", "Whether the server runs.")},
            "/v2/health/ready": {"get": _health("ready", "Whether the server takes requests.")},
        },
        "components": {
            "schemas": {
                **_bodies(v1.body, v2.texts, v2.fields),
                "V2Body": {
                    "anyOf": [{"$ref": f"#/components/schemas/{body.__name__}"} for body in (v2.texts, v2.fields)]
                },
                "V1Answer": _object(
                    {"predictions": _list(_prediction(answer), 1, MAX_REQUESTS)}, required=["predictions"]
                ),
                "V2Answer": _v2_answer(answer),
                "Error": _object(
                    {"error": {"type": "string"}, "field": {"type": "string"}}, required=["error", "field"]
                ),
            }
        },
    }


def _bodies(*models: Any) -> dict[str, Any]:
    """JSON schemas of the body models and of their parts, by name."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in models],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    bodies: dict[str, Any] = schemas["$defs"]
    return {name: {key: value for key, value in body.items() if key != "title"} for name, body in bodies.items()}


def _operation(name: str, summary: str, body: str, answer: str, *, binary: bool = False) -> dict[str, Any]:
    def content(schema: str, *, tensors: bool = False) -> dict[str, Any]:
        media_types: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        if tensors:  # JSON followed by binary data, which no schema describes
            media_types[BINARY] = {}
        return media_types

    length = LENGTH if binary else {}
    success = {
        "description": "Scores.",
        "headers": _headers(ANSWER_HEADERS | TIMING | length),
        "content": content(answer, tensors=binary),
    }
    errors = {
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
        "responses": {"200": success, **errors},
    }


def _headers(texts: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def _health(state: str, summary: str) -> dict[str, Any]:
    answer = _object({state: {"const": True}}, required="all")
    return {
        "operationId": state,
        "summary": summary,
        "responses": {"200": {"description": "It does.", "content": {"application/json": {"schema": answer}}}},
    }


def _prediction(answer: type) -> dict[str, Any]:
    return {"anyOf": [_answer(answer, looked_up=looked_up) for looked_up in (True, False)]}


def _answer(answer: type, *, looked_up: bool) -> dict[str, Any]:
    fields = layout(answer, looked_up)
    row = {"row": {"description": "Index of the row.", "type": "integer", "minimum": 0}}
    entry = {} if looked_up else row
    entry |= {f.key: f.json for f in (*fields.rows, *fields.repeated)}
    entries = {"items" if looked_up else "rows": {"type": "array", "items": _object(entry, required="all")}}
    return _object({**entries, **{f.key: f.json for f in fields.whole}}, required="all")


def _v2_answer(answer: type) -> dict[str, Any]:
    fields = answer_fields(answer)
    outputs = []
    for name, (datatype, field) in outputs_of(answer).items():
        index = {"description": "Index of the request.", "type": "integer", "minimum": 0}
        # For raw rows, looked-up fields are empty texts or absent.
        value = index if field is None else {**field.json, **({"minLength": 0} if field.looked_up else {})}
        parts = {
            "name": {"const": name},
            "datatype": {"const": datatype},
            "shape": _list({"type": "integer"}, 1, 1),
            "data": {"type": "array", "items": value},
            "parameters": {"type": "object"},
        }
        outputs.append(_object(parts, required=["name", "datatype", "shape"]))
    scalars = {f.name: f.json for f in fields if "parameter" in f.v2}
    flags = ", ".join(_flag(f) for f in fields if "flag" in f.v2)
    description = f"A JSON text: a list with an object for each request, of {flags}."
    parameters = {
        **scalars,
        "flags": {"type": "string", "contentMediaType": "application/json", "description": description},
    }
    return _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": _object(parameters, required="all"),
            "outputs": {"type": "array", "items": {"anyOf": outputs}},
        },
        required=["model_name", "model_version", "parameters", "outputs"],
    )


def _flag(field: AnswerField) -> str:
    return f"{field.name} (in how many rows)" if field.rows else field.name


def _object(properties: dict[str, Any], required: Sequence[str] | Literal["all"] = ()) -> dict[str, Any]:
    names = list(properties if required == "all" else required)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _list(items: dict[str, Any], fewest: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}
