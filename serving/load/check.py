"""Validation of responses: detects invalid responses with status 200."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import orjson

from serving.load.client import ClientResponse
from serving.load.plan import asked

Outcome = Literal["ok", "late", "refused", "failed", "wrong", "lost", "not sent"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
REFUSED = (429, 503)


def outcome(request: dict[str, Any], reply: ClientResponse, seconds: float, deadline: float | None) -> Outcome:
    """Outcome of a request. A response with status 200 must also be valid."""
    if reply.status in REFUSED:
        return "refused"
    if reply.status != 200:
        return "failed"
    if wrong(request, reply.body):
        return "wrong"
    return "late" if deadline is not None and seconds > deadline else "ok"


def wrong(request: dict[str, Any], body: bytes) -> str:
    """The problem with a v1 or v2 response body, "" if it is valid."""
    try:
        value = orjson.loads(body)
        rank, probability, versions = _columns(value)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"it is not a valid response ({error!r})"
    count = asked(request)
    if len(rank) != count:
        return f"it has {len(rank)} rows instead of {count}"
    if request.get("k") is None and sorted(rank) != list(range(1, count + 1)):
        return "its ranks are not a permutation"
    if request.get("k") is not None and list(rank) != list(range(1, count + 1)):
        return "its best rows are not in order"
    if not all(0 < p < 1 for p in probability):
        return "it has probabilities outside of 0 to 1"
    best_first = [p for _, p in sorted(zip(rank, probability, strict=True))]
    if best_first != sorted(probability, reverse=True):
        return "its ranks do not follow its probabilities"
    return "" if len(set(versions)) == 1 else "it names several model versions"


def _columns(value: Any) -> tuple[Sequence[int], Sequence[float], Sequence[str]]:
    if "predictions" in value:
        (prediction,) = value["predictions"]
        rows = prediction.get("items") or prediction["rows"]
        return (
            [row["rank"] for row in rows],
            [row["probability"] for row in rows],
            [*(row["model_version"] for row in rows), prediction["model_version"]],
        )
    outputs = {output["name"]: output["data"] for output in value["outputs"]}
    return outputs["rank"], outputs["probability"], [*outputs["model_version"], value["model_version"]]
