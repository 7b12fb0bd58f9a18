"""Check of the ingress rules of a route file, with sample requests that must be refused and some that must pass.

The matchers are evaluated as in Envoy, so a wrong rule is detected by its effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thinktwice.errors import ExperimentError
from thinktwice.experiment.route_file import Route

METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO", "post", "")
OTHER_PATHS = ("/nothing", "/ping", "/metrics", "/models", "/invocations", "/predictions/{}", "/v1/models/{}x")
AROUND = ("-not", "/", ":x", "?a=b", "#", "%20", ";x")  # appended to a predict path
FORMS = (
    "application/x-www-form-urlencoded",
    "Application/X-WWW-Form-Urlencoded; charset=utf-8",
    "multipart/form-data; boundary=x",
    "application/json, multipart/mixed",
)
GOOD_TYPES = (None, "", "application/json", "application/json; charset=utf-8", "application/octet-stream", "text/plain")
GOOD_IDS, BAD_IDS = ("a", "00000000-0000-4000-8000-000000000001", " " * 128), ("\x7f", "ü", "a" * 129)
SMALL, LARGE = ("0", "1023"), str(2**40)
#: Changes of the value of a right token that must be refused.
WRONG_TOKENS: tuple[Callable[[str], str], ...] = (
    lambda value: value + "x",
    lambda value: value[:-1],
    lambda value: value.removeprefix("Bearer "),
    lambda value: value.replace("Bearer", "Basic"),
)


def check_ingress(routes: Sequence[Route]) -> list[Route]:
    """The routes after those with a direct answer, after checking that these refuse what they must.

    Raises:
        ExperimentError: a request that must be refused would pass, or one that must pass would not.
    """
    rules = [route for route in routes if route.direct_response is not None]
    first = list(routes[: len(rules)])
    _require(first == rules and bool(rules), "ingress rules must come before all routes to arms")
    for route in rules:
        _require(route.route is None and route.match.prefix == "/", f"{route.name} must answer and not route")
        unchanged = not route.request_headers_to_add and not route.request_headers_to_remove and route.metadata is None
        _require(unchanged, f"{route.name} must not touch requests")
    model = _model(rules)
    tokens = accepted_tokens(rules)
    good = tokens[0] if tokens else None
    predict = (f"/v1/models/{model}:predict", f"/v2/models/{model}/infer")
    for path in predict:
        for kind in GOOD_TYPES:
            for request_id in GOOD_IDS:
                for size in (None, *SMALL):
                    _check_status(rules, (), path, kind=kind, request_id=request_id, size=size, token=good)
        for method in METHODS:
            _check_status(rules, (405,), path, method=method, token=good)
        for suffix in AROUND:
            _check_status(rules, (404,), path + suffix, token=good)
        for kind in FORMS:
            _check_status(rules, (415,), path, kind=kind, token=good)
        for request_id in BAD_IDS:
            _check_status(rules, (400,), path, request_id=request_id, token=good)
        _check_status(rules, (413,), path, size=LARGE, token=good)
        for token in tokens:
            _check_status(rules, (), path, token=token)
        if tokens:
            wrong = (change(t) for t in tokens for change in WRONG_TOKENS)
            for other in (None, "", "Bearer", "Bearer ", *wrong):
                _check_status(rules, (401,), path, token=other)
    for template in OTHER_PATHS:
        for method in ("POST", "GET", "PUT"):
            _check_status(rules, (404,), template.format(model), method=method, token=good)
    for path in ("/", "/v1/models", "/v2", "/v2/health/live", f"/v2/models/{model}"):
        _check_status(rules, (200,), path, method="GET", token=good)
        for method in ("POST", "PUT", "HEAD"):
            _check_status(rules, (405,), path, method=method, token=good)
    return list(routes[len(rules) :])


def accepted_tokens(routes: Sequence[Route]) -> list[str]:
    """Values of the header of bearer tokens that the route ``ingress-token-known`` lets pass; none without such a route."""
    for route in routes:
        if route.name == "ingress-token-known":
            matchers = [h for h in route.match.headers if h.get("name") == "authorization"]
            values = [m.get("string_match") for m in matchers if m.get("invert_match") is True]
            exact = [value.get("exact") for value in values if isinstance(value, dict)]
            _require(bool(exact) and all(isinstance(value, str) for value in exact), f"{route.name} names no token")
            return [str(value) for value in exact]
    return []


def _model(rules: Sequence[Route]) -> str:
    """The model whose paths pass, from the rule of the model list."""
    for route in rules:
        matchers = [h.get("string_match") for h in route.match.headers if h.get("name") == ":path"]
        for matcher in matchers:
            exact = matcher.get("exact") if isinstance(matcher, dict) else None
            if isinstance(exact, str) and (match := re.fullmatch(r"/v2/models/([A-Za-z0-9_-]+)", exact)):
                return match[1]
    raise ExperimentError(
        "routes refused: no rule answers for a model at /v2/models/NAME: render the routes again with `thinktwice gateway render`"
    )


def _check_status(
    rules: Sequence[Route],
    statuses: tuple[int, ...],
    path: str,
    *,
    method: str = "POST",
    kind: str | None = None,
    request_id: str = "a",
    size: str | None = None,
    token: str | None = None,
) -> None:
    """Prove that a request gets one of these statuses or, if there are none, that it passes."""
    request = {
        ":path": path,
        ":method": method,
        "content-type": kind,
        "x-request-id": request_id,
        "content-length": size,
        "authorization": token,
    }
    headers = {name: value for name, value in request.items() if value is not None}
    rule = next((r for r in rules if all(_header_matches(m, headers, r.name) for m in r.match.headers)), None)
    status = rule.direct_response.status if rule is not None and rule.direct_response is not None else None
    accepted = status in statuses if statuses else status is None
    expected = " or ".join(map(str, statuses)) or "pass"
    _require(
        accepted, f"the ingress rules answer {method} {path} ({kind}, {size} bytes) with {status}, it must {expected}"
    )


def _header_matches(matcher: Mapping[str, Any], headers: Mapping[str, str], where: str) -> bool:
    """Whether a matcher of one header matches, evaluated as in Envoy: a value matcher never matches without the header."""
    known = {"name", "present_match", "string_match", "range_match", "invert_match"}
    kinds = set(matcher) - {"name", "invert_match"}
    _require(
        set(matcher) <= known and len(kinds) == 1,
        f"{where} has a matcher of an unknown kind: use exact, prefix or range matchers",
    )
    value = headers.get(str(matcher.get("name")))
    invert = matcher.get("invert_match", False) is True
    if "present_match" in matcher:
        present = (value is not None) is (matcher["present_match"] is True)
        return present is not invert
    if value is None:
        return False
    return _matches(matcher, value, where) is not invert


def _matches(matcher: Mapping[str, Any], value: str, where: str) -> bool:
    try:
        if "range_match" in matcher:
            start, end = (_integer(matcher["range_match"][name]) for name in ("start", "end"))
            return value.isdigit() and start <= int(value) < end
        condition = dict(matcher["string_match"])
        if set(condition) == {"exact"} and isinstance(condition["exact"], str):
            return bool(value == condition["exact"])
        if set(condition) == {"safe_regex"} and set(condition["safe_regex"]) == {"regex"}:
            return re.fullmatch(condition["safe_regex"]["regex"], value) is not None
    except (KeyError, TypeError, ValueError, re.error):
        pass
    raise ExperimentError(
        f"routes refused: {where} has a matcher of an unknown kind: use exact, prefix or range matchers"
    )


def _integer(value: object) -> int:
    """A 64-bit integer of Envoy's JSON, which is a text or a number. Fractions and infinity are no bounds of a range."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("not an integer")


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ExperimentError(f"routes refused: {problem}")
