"""KServe v1: ``{"instances": [request, ...]}`` in, ``{"predictions": [answer, ...]}`` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.scorer import Answer
from thinktwice.errors import RequestError


def instances(body: dict[str, Any], tail: bytes = b"") -> Any:
    """The raw requests of a v1 body; ``tail`` is what follows its JSON.

    Raises:
        RequestError: the body has no ``instances``, or other keys, or something behind its JSON.
    """
    if tail:
        raise RequestError(
            f"unexpected {len(tail)} trailing bytes after the JSON: only v2 requests may carry binary data",
            field="body",
        )
    if "instances" not in body:
        raise RequestError(
            'instances is missing: send {"instances": [...]} or an Open Inference v2 body', field="instances"
        )
    for name in body:
        if name != "instances":
            raise RequestError(f"unknown key {name[:64]!r} beside instances", field=name[:64])
    return body["instances"]


def encode(answers: Sequence[Answer]) -> dict[str, Any]:
    """One prediction per request, in order."""
    return {"predictions": [encode_answer(answer) for answer in answers]}


def encode_answer(answer: Answer) -> dict[str, Any]:
    """``{"items": [...], ...}`` for candidates, ``{"rows": [...], ...}`` for raw rows."""
    entries = []
    for position in answer.order:
        entry: dict[str, Any] = {}
        if answer.item_ids is None:
            entry["row"] = position
        else:
            entry["item_id"] = answer.item_ids[position]
        entry["probability"] = answer.probability[position]
        entry["uncertainty"] = answer.uncertainty[position]
        entry["num_paths"] = answer.num_paths[position]
        entry["rank"] = answer.rank[position]
        if answer.item_ids is not None:
            entry["cold"] = answer.cold_items[position]
            entry["stale"] = answer.stale_items[position]
        entry["model_version"] = answer.model_version
        entries.append(entry)
    out: dict[str, Any] = {"rows" if answer.item_ids is None else "items": entries}
    if answer.item_ids is not None:
        out["cold_user"] = answer.cold_user
        out["stale_user"] = answer.stale_user
        out["defaulted"] = list(answer.defaulted)
        out["default_features"] = list(answer.default_features)
    out["paths_capped"] = answer.paths_capped
    out["model_version"] = answer.model_version
    out["bundle_hash"] = answer.bundle_hash
    return out
