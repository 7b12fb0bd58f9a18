"""Do the first routes of a file keep out what no arm may see? They are asked, by requests that must be refused and some that must not.

The matchers are evaluated here as Envoy does it, so a rule that was written wrongly is found by what it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from thinktwice.errors import ExperimentError
from thinktwice.experiment.route_file import Route

METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO", "post", "")
OTHER_PATHS = ("/nothing", "/ping", "/metrics", "/models", "/invocations", "/predictions/{}", "/v1/models/{}x")
AROUND = ("-not", "/", ":x", "?a=b", "#", "%20", ";x")  # behind a path that predicts
FORMS = (
    "application/x-www-form-urlencoded",
    "Application/X-WWW-Form-Urlencoded; charset=utf-8",
    "multipart/form-data; boundary=x",
    "application/json, multipart/mixed",
)
GOOD_TYPES = (None, "", "application/json", "application/json; charset=utf-8", "application/octet-stream", "text/plain")
GOOD_IDS, BAD_IDS = ("a", "00000000-0000-4000-8000-000000000001", " " * 128), ("\x7f", "ü", "a" * 129)
SMALL, LARGE = ("0", "1023"), str(2**40)


def check_ingress(routes: Sequence[Route]) -> list[Route]:
    """The routes behind those that answer by themselves, once these have refused what they must.

    Raises:
        ExperimentError: a request that must be refused would pass, or one that must pass would not.
    """
    rules = [route for route in routes if route.direct_response is not None]
    first = list(routes[: len(rules)])
    _want(first == rules and bool(rules), "ingress rules must come before all routes to arms")
    for route in rules:
        _want(route.route is None and route.match.prefix == "/", f"{route.name} must answer and not route")
        own = not route.request_headers_to_add and not route.request_headers_to_remove and route.metadata is None
        _want(own, f"{route.name} must not touch requests")
    model = _model(rules)
    predict = (f"/v1/models/{model}:predict", f"/v2/models/{model}/infer")
    for path in predict:
        for kind in GOOD_TYPES:
            for request_id in GOOD_IDS:
                for size in (None, *SMALL):
                    _expect(rules, (), path, kind=kind, request_id=request_id, size=size)
        for method in METHODS:
            _expect(rules, (405,), path, method=method)
        for more in AROUND:
            _expect(rules, (404,), path + more)
        for kind in FORMS:
            _expect(rules, (415,), path, kind=kind)
        for request_id in BAD_IDS:
            _expect(rules, (400,), path, request_id=request_id)
        _expect(rules, (413,), path, size=LARGE)
    for other in OTHER_PATHS:
        for method in ("POST", "GET", "PUT"):
            _expect(rules, (404,), other.format(model), method=method)
    for path in ("/", "/v1/models", "/v2", "/v2/health/live", f"/v2/models/{model}"):
        _expect(rules, (200,), path, method="GET")
        for method in ("POST", "PUT", "HEAD"):
            _expect(rules, (405,), path, method=method)
    return list(routes[len(rules) :])


def _model(rules: Sequence[Route]) -> str:
    """The model whose paths pass, as the list of models names it."""
    for route in rules:
        matchers = [h.get("string_match") for h in route.match.headers if h.get("name") == ":path"]
        for matcher in matchers:
            exact = matcher.get("exact") if isinstance(matcher, dict) else None
            if isinstance(exact, str) and (found := re.fullmatch(r"/v2/models/([A-Za-z0-9_-]+)", exact)):
                return found[1]
    raise ExperimentError("routes refused: no rule answers for a model at /v2/models/NAME")


def _expect(
    rules: Sequence[Route],
    statuses: tuple[int, ...],
    path: str,
    *,
    method: str = "POST",
    kind: str | None = None,
    request_id: str = "a",
    size: str | None = None,
) -> None:
    """Prove that a request gets one of these answers; none of them: that it passes."""
    given = {":path": path, ":method": method, "content-type": kind, "x-request-id": request_id, "content-length": size}
    headers = {name: value for name, value in given.items() if value is not None}
    found = next((r for r in rules if all(_holds(m, headers, r.name) for m in r.match.headers)), None)
    status = found.direct_response.status if found is not None and found.direct_response is not None else None
    good = status in statuses if statuses else status is None
    wanted = " or ".join(map(str, statuses)) or "pass"
    _want(good, f"the ingress rules answer {method} {path} ({kind}, {size} bytes) with {status}, it must {wanted}")


def _holds(matcher: Mapping[str, Any], headers: Mapping[str, str], where: str) -> bool:
    """Whether a matcher of one header holds, as Envoy evaluates it: one of a value never holds without the header."""
    known = {"name", "present_match", "string_match", "range_match", "invert_match"}
    kinds = set(matcher) - {"name", "invert_match"}
    _want(set(matcher) <= known and len(kinds) == 1, f"{where} matches in a way that is not known here")
    value = headers.get(str(matcher.get("name")))
    invert = matcher.get("invert_match", False) is True
    if "present_match" in matcher:
        return (value is not None) is (matcher["present_match"] is True) is not invert
    if value is None:
        return False
    return _matches(matcher, value, where) is not invert


def _matches(matcher: Mapping[str, Any], value: str, where: str) -> bool:
    try:
        if "range_match" in matcher:
            start, end = (_integer(matcher["range_match"][name]) for name in ("start", "end"))
            return value.isdigit() and start <= int(value) < end
        found = dict(matcher["string_match"])
        if set(found) == {"exact"}:
            return bool(value == found["exact"])
        if set(found) == {"safe_regex"} and set(found["safe_regex"]) == {"regex"}:
            return re.fullmatch(found["safe_regex"]["regex"], value) is not None
    except (KeyError, TypeError, ValueError, re.error):
        pass
    raise ExperimentError(f"routes refused: {where} matches in a way that is not known here")


def _integer(value: object) -> int:
    """A 64-bit integer of Envoy's JSON, which is a text or a number. Fractions and infinity are no bounds of a range."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("not an integer")


def _want(holds: bool, problem: str) -> None:
    if not holds:
        raise ExperimentError(f"routes refused: {problem}")
