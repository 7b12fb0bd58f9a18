"""Ingress rules: requests that the gateway refuses or answers itself, by method, path, content type and size.

TorchServe's front end accepts, or parses, requests that no server should see. The rules are routes before those of the
arms, each with a direct answer, so a request that matches no rule is a POST to one of the two predict paths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from thinktwice.experiment.door import AUTHORIZATION, bearers
from thinktwice.experiment.gateway_config import SERVED_ARM, GatewayConfig

Json = dict[str, Any]

MAX_HEADER_KB = 16  # of request line and headers together
MAX_REQUEST_ID = 128  # characters; the predictor replaces a longer one, and its rows would not match the access log
REQUEST_ID = rf"[ -~]{{1,{MAX_REQUEST_ID}}}"
FORMS = r"(?i).*(x-www-form-urlencoded|multipart/).*"
BUFFER = "envoy.filters.http.buffer"
JSON_TYPE = "application/json"
RETRY_AFTER = "1"
OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"


def predict_paths(model: str) -> tuple[str, str]:
    """The two paths that are routed to an arm, KServe v1 and Open Inference v2."""
    return f"/v1/models/{model}:predict", f"/v2/models/{model}/infer"


def listed(model: str) -> dict[str, Any]:
    """Bodies by path of GET requests that the gateway answers itself, independently of the arms: those of the KServe
    predictor."""
    return {
        "/": {"status": "alive"},
        "/v2/health/live": {"live": True},
        "/v1/models": {"models": [model]},
        "/v2": {"name": "thinktwice", "version": version("thinktwice"), "extensions": ["binary_tensor_data"]},
        f"/v2/models/{model}": {"name": model, "versions": None, "platform": "", "inputs": [], "outputs": []},
    }


def readiness(model: str) -> dict[str, tuple[Any, Any]]:
    """Bodies by path, if control predicts and if it does not."""
    named = {"name": model, "ready": True}, {"name": model, "ready": False}
    return {
        "/v2/health/ready": ({"ready": True}, {"ready": False}),
        f"/v1/models/{model}": named,
        f"/v2/models/{model}/ready": named,
    }


def ingress_routes(config: GatewayConfig, tokens: Sequence[str] = ()) -> list[Json]:
    """Routes with a direct answer, in order of matching.

    Args:
        tokens: of which a prediction needs one; without any, none is asked for.
    """
    predict = predict_paths(config.model)
    is_predict = _path(*predict)
    known = (*listed(config.model), *readiness(config.model))
    routes = _token_routes(is_predict, tokens)
    routes += [_answer("method", [is_predict, _not(_method("POST"))], 405, "send a POST", {"allow": "POST"})]
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


def _token_routes(is_predict: Json, tokens: Sequence[str]) -> list[Json]:
    if not tokens:
        return []
    asked = {"www-authenticate": "Bearer"}
    wrong = [_not({"name": AUTHORIZATION, "string_match": {"exact": bearer}}) for bearer in bearers(tokens)]
    return [
        _answer("token", [is_predict, _not(_present(AUTHORIZATION))], 401, "send a bearer token", asked),
        _answer("token-known", [is_predict, *wrong], 401, "this is not a token of this gateway", asked),
    ]


def too_large(most: int) -> str:
    """Error message for a body of more than ``most`` bytes."""
    return f"the body is too large, at most {most} bytes are accepted: send fewer rows"


def ingress_filters(config: GatewayConfig, ready_cluster: str, limits: Sequence[Json] = ()) -> list[Json]:
    """HTTP filters before the router: readiness from the health of ``ready_cluster``, buffering of bodies, and
    rate limits.

    A body is buffered before the request is routed to an arm: a slow client then occupies a connection of the gateway and
    not of a server, and the request can be retried on another server.
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
        # After the buffer: a refused request that was read whole leaves its connection open.
        *limits,
    ]


def local_replies(config: GatewayConfig) -> Json:
    """Answers of the gateway itself have the form of the predictor's errors: ``{"error": ..., "field": ...}``."""
    mappers = []
    for path, (ready_body, unready_body) in readiness(config.model).items():
        on_path = _by_header(_path(path))
        mappers.append(_mapper([on_path, _status(200)], json.dumps(ready_body)))
        mappers.append(_mapper([on_path, _by_header(_method("GET")), _status(503)], json.dumps(unready_body)))
    mappers.append(_mapper([_status(200)], None))
    head = f"request line and headers must be at most {MAX_HEADER_KB} KiB, and at most 100 headers"
    bad_id = _by_header(_not(_matches("x-request-id", REQUEST_ID)))
    mappers.append(_mapper([_status(400), bad_id], None, "x-request-id"))
    for status, field, text in (
        (400, "", "the request is not valid HTTP"),
        (403, "", "the connection cannot be upgraded to another protocol"),
        *([(401, AUTHORIZATION, None)] if config.token_file is not None else []),
        *(
            [(429, "", "too many requests, send it again later")]
            if config.rate_limit or config.connection_rate_limit
            else []
        ),
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
        if status in (429, 502, 503, 504):  # no arm served it, even if one was tried
            nobody = {"header": {"key": SERVED_ARM, "value": ""}, "append_action": OVERWRITE, "keep_empty_value": True}
            later = {"header": {"key": "retry-after", "value": RETRY_AFTER}, "append_action": "ADD_IF_ABSENT"}
            mapper["headers_to_add"] = [nobody, later]
        mappers.append(mapper)
    return {"mappers": mappers, "body_format": _error("")}


def _mapper(filters: list[Json], text: str | None, field: str | None = None) -> Json:
    """The replacement of a reply that matches all filters; ``field`` is None if it is not an error."""
    mapper: Json = {"filter": filters[0] if len(filters) == 1 else {"and_filter": {"filters": filters}}}
    if text is not None:
        mapper["body"] = {"inline_string": text}
    mapper["body_format_override"] = _plain_json() if field is None else _error(field)
    return mapper


def _plain_json() -> Json:
    return {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": JSON_TYPE}


def _error(field: str) -> Json:
    return {"json_format": {"error": "%LOCAL_REPLY_BODY%", "field": field}, "content_type": JSON_TYPE}


def _answer(
    name: str, headers: list[Json], status: int, body: Any, extra_headers: dict[str, str] | None = None
) -> Json:
    text = body if isinstance(body, str) else json.dumps(body)
    route: Json = {
        "name": f"ingress-{name}",
        "match": {"prefix": "/", "headers": headers},
        "direct_response": {"status": status, "body": {"inline_string": text}},
        # Answered at once, without waiting for the body.
        "typed_per_filter_config": {
            BUFFER: {"@type": _type("extensions.filters.http.buffer.v3.BufferPerRoute"), "disabled": True}
        },
    }
    if extra_headers:
        route["response_headers_to_add"] = [
            {"header": {"key": key, "value": value}, "append_action": OVERWRITE} for key, value in extra_headers.items()
        ]
    return route


def _path(*paths: str) -> Json:
    """Matches exactly one of these paths, without a query."""
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
