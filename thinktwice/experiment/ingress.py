"""What the gateway refuses before a request reaches an arm, and what it answers itself: methods, paths, content types, sizes.

TorchServe's front end lets through, or takes apart, what no server should see. The rules stand as routes before those of the arms, each
with an answer of its own, so a request that no rule takes is a POST to one of the two predict paths and nothing else.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any

from thinktwice.experiment.gateway_config import SERVED_ARM, GatewayConfig

Json = dict[str, Any]

MAX_HEADER_KB = 16  # of request line and headers together
MAX_REQUEST_ID = (
    128  # characters; the predictor replaces a longer one, and its rows would then match no line of the access log
)
REQUEST_ID = rf"[ -~]{{1,{MAX_REQUEST_ID}}}"
FORMS = r"(?i).*(x-www-form-urlencoded|multipart/).*"
BUFFER = "envoy.filters.http.buffer"
JSON_TYPE = "application/json"
RETRY_AFTER = "1"
OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"


def predict_paths(model: str) -> tuple[str, str]:
    """The two paths that reach an arm, KServe v1 and Open Inference v2."""
    return f"/v1/models/{model}:predict", f"/v2/models/{model}/infer"


def listed(model: str) -> dict[str, Any]:
    """Bodies by path that the gateway answers itself to a GET, whatever the arms do: those of the KServe predictor."""
    return {
        "/": {"status": "alive"},
        "/v2/health/live": {"live": True},
        "/v1/models": {"models": [model]},
        "/v2": {"name": "thinktwice", "version": version("thinktwice"), "extensions": ["binary_tensor_data"]},
        f"/v2/models/{model}": {"name": model, "versions": None, "platform": "", "inputs": [], "outputs": []},
    }


def readiness(model: str) -> dict[str, tuple[Any, Any]]:
    """Bodies by path when control predicts, and when it does not."""
    named = {"name": model, "ready": True}, {"name": model, "ready": False}
    return {
        "/v2/health/ready": ({"ready": True}, {"ready": False}),
        f"/v1/models/{model}": named,
        f"/v2/models/{model}/ready": named,
    }


def ingress_routes(config: GatewayConfig) -> list[Json]:
    """Routes with an answer of their own, in the order in which they are tried."""
    predict = predict_paths(config.model)
    is_predict = _path(*predict)
    known = (*listed(config.model), *readiness(config.model))
    routes = [_answer("method", [is_predict, _not(_method("POST"))], 405, "send a POST", {"allow": "POST"})]
    for path, body in listed(config.model).items():
        routes.append(_answer(f"get {path}", [_path(path), _method("GET")], 200, body))
    routes += [
        _answer("method-known", [_path(*known), _not(_method("GET"))], 405, "send a GET", {"allow": "GET"}),
        _answer("path", [_not(is_predict)], 404, f"no such path: predict at {' or '.join(predict)}"),
        _answer("content-type", [_matches("content-type", FORMS)], 415, f"a form is not accepted: send {JSON_TYPE}"),
        _answer(
            "x-request-id",
            [_present("x-request-id"), _not(_matches("x-request-id", REQUEST_ID))],
            400,
            f"the header must be 1 to {MAX_REQUEST_ID} printable ASCII characters",
        ),
        _answer(
            "body",
            [{"name": "content-length", "range_match": {"start": str(config.max_body_bytes + 1), "end": str(2**62)}}],
            413,
            too_large(config.max_body_bytes),
        ),
    ]
    return routes


def too_large(most: int) -> str:
    """What is said about a body of more than ``most`` bytes."""
    return f"the body is too large, at most {most} bytes are accepted: send fewer rows"


def ingress_filters(config: GatewayConfig, ready_cluster: str) -> list[Json]:
    """HTTP filters before the router: readiness by whether ``ready_cluster`` is healthy, and whole bodies only.

    A body is collected before an arm sees the request: a slow client then holds a connection of the gateway and none of a server, and
    the request can be sent again to another server.
    """
    paths = "|".join(map(re.escape, readiness(config.model)))
    return [
        {
            "name": "envoy.filters.http.health_check",
            "typed_config": {
                "@type": _type("extensions.filters.http.health_check.v3.HealthCheck"),
                "pass_through_mode": False,
                "headers": [_matches(":path", paths), _method("GET")],
                "cluster_min_healthy_percentages": {ready_cluster: {"value": 1}},
            },
        },
        {
            "name": BUFFER,
            "typed_config": {
                "@type": _type("extensions.filters.http.buffer.v3.Buffer"),
                "max_request_bytes": config.max_body_bytes,
            },
        },
    ]


def local_replies(config: GatewayConfig) -> Json:
    """Every answer that is the gateway's own has the form of the predictor's errors: ``{"error": ..., "field": ...}``."""
    mappers = []
    for path, (good, bad) in readiness(config.model).items():
        here = _by_header(_path(path))
        mappers.append(_mapper([here, _status(200)], json.dumps(good)))
        mappers.append(_mapper([here, _by_header(_method("GET")), _status(503)], json.dumps(bad)))
    mappers.append(_mapper([_status(200)], None))
    head = f"request line and headers must be at most {MAX_HEADER_KB} KiB, and at most 100 headers"
    bad_id = _by_header(_not(_matches("x-request-id", REQUEST_ID)))
    mappers.append(_mapper([_status(400), bad_id], None, "x-request-id"))
    for status, field, text in (
        (400, "", "the request is not valid HTTP"),
        (403, "", "the connection cannot be upgraded to another protocol"),
        (404, "path", None),
        (405, "method", None),
        (415, "content-type", None),
        (408, "", f"the request did not arrive within {config.request_timeout:g} s"),
        (413, "body", too_large(config.max_body_bytes)),
        (431, "headers", head),
        (426, "", "HTTP/1.1 or HTTP/2 is required"),
        (501, "", "this transfer coding is not supported"),
        (502, "", "no server gave a valid answer, try again later"),
        (503, "", "no server can answer now, try again later"),
        (504, "", "no server answered in time, try again later"),
    ):
        mapper = _mapper([_status(status)], text, field)
        if status in (502, 503, 504):  # nobody served it, whoever was tried last
            nobody = {"header": {"key": SERVED_ARM, "value": ""}, "append_action": OVERWRITE, "keep_empty_value": True}
            later = {"header": {"key": "retry-after", "value": RETRY_AFTER}, "append_action": "ADD_IF_ABSENT"}
            mapper["headers_to_add"] = [nobody, later]
        mappers.append(mapper)
    return {"mappers": mappers, "body_format": _error("")}


def _mapper(filters: list[Json], text: str | None, field: str | None = None) -> Json:
    """What is sent instead of a reply that all filters hold for; ``field`` None for one that is no error."""
    found: Json = {"filter": filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}}}
    if text is not None:
        found["body"] = {"inline_string": text}
    found["body_format_override"] = _plain_json() if field is None else _error(field)
    return found


def _plain_json() -> Json:
    return {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": JSON_TYPE}


def _error(field: str) -> Json:
    return {"json_format": {"error": "%LOCAL_REPLY_BODY%", "field": field}, "content_type": JSON_TYPE}


def _answer(name: str, headers: list[Json], status: int, body: Any, more: dict[str, str] | None = None) -> Json:
    text = body if isinstance(body, str) else json.dumps(body)
    route: Json = {
        "name": f"ingress-{name}",
        "match": {"prefix": "/", "headers": headers},
        "direct_response": {"status": status, "body": {"inline_string": text}},
        # Answered at once: what follows the headers is not waited for.
        "typed_per_filter_config": {
            BUFFER: {"@type": _type("extensions.filters.http.buffer.v3.BufferPerRoute"), "disabled": True}
        },
    }
    if more:
        route["response_headers_to_add"] = [
            {"header": {"key": key, "value": value}, "append_action": OVERWRITE} for key, value in more.items()
        ]
    return route


def _path(*paths: str) -> Json:
    """One of these paths, to the letter and without a query."""
    if len(paths) == 1:
        return {"name": ":path", "string_match": {"exact": paths[0]}}
    return _matches(":path", "|".join(map(re.escape, paths)))


def _method(name: str) -> Json:
    return {"name": ":method", "string_match": {"exact": name}}


def _matches(header: str, expression: str) -> Json:
    return {"name": header, "string_match": {"safe_regex": {"regex": expression}}}


def _present(header: str) -> Json:
    return {"name": header, "present_match": True}


def _not(matcher: Json) -> Json:
    return {**matcher, "invert_match": True}


def _by_header(matcher: Json) -> Json:
    return {"header_filter": {"header": matcher}}


def _status(code: int) -> Json:
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": code, "runtime_key": "none"}}}}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.{name}"
