"""Validates custom resources against the schema of their CustomResourceDefinition, unknown fields refused.

An API server drops a field it does not know without a word, so a typo becomes a setting that is not there. Here every object
that lists its ``properties`` and does not keep unknown fields is closed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_TEXT_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
# The definitions leave metadata to the API server; this is what a manifest may say there.
_METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "labels": {
            "type": "object",
            "additionalProperties": {
                "type": "string",
                "maxLength": 63,
                "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
            },
        },
        "annotations": _TEXT_MAP,
    },
}


def close(schema: Any) -> Any:
    """A copy of an OpenAPI v3 schema of Kubernetes as plain JSON Schema, its objects closed."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
    closed = {
        key: {name: close(part) for name, part in value.items()} if key == "properties" else close(value)
        for key, value in schema.items()
    }
    if "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields") is True
    return closed


@cache
def _validator(path: Path) -> Draft202012Validator:
    schema = close(json.loads(path.read_text()))
    schema["properties"]["metadata"] = _METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return Draft202012Validator(schema)


def schema_file(folder: Path, resource: dict[str, Any]) -> Path:
    """File of the schema of a custom resource in ``folder``, by its group, version and kind."""
    group, version = resource["apiVersion"].split("/")
    return folder / f"{group}_{version}_{resource['kind']}.json"


def errors(resource: dict[str, Any], folder: Path) -> list[str]:
    """What an API server that refuses unknown fields would say, as ``path: message`` lines; empty when it is content."""
    found = _validator(schema_file(folder, resource)).iter_errors(resource)
    return sorted(f"{'.'.join(map(str, error.absolute_path)) or '.'}: {error.message}" for error in found)
