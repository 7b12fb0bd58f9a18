"""Server-side apply with a field manager of our own, and conflicts with others as sentences."""

from __future__ import annotations

import re
from typing import Any

from components.cluster.client import APPLY, Api, Json, Resource
from components.deployment.rollout.objects import MANAGER
from thinktwice.errors import RolloutError

ATTEMPTS = 5  # of an apply that meets a change of the object by somebody else
#: Field managers of people at a command line: what they set may be changed. A GitOps controller would set it back.
BY_HAND = ("kubectl", "before-first-apply")


def apply(api: Api, resource: Resource, value: Json, *, take_over: bool = False) -> Json:
    """Create or change an object so that it has the fields of ``value``; fields of ours that it no longer names are removed.

    Args:
        take_over: take fields from every other manager, not only from a person's kubectl.

    Raises:
        RolloutError: a field belongs to another manager, or the server refuses the object.
    """
    name = value["metadata"]["name"]
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
    for _ in range(ATTEMPTS):
        answer = api.ask("PATCH", resource, name, body=value, query=query, content_type=APPLY, allow=(409,))
        if answer.ok:
            return dict(answer.body)
        conflicts = _conflicts(answer.body)
        foreign = sorted({manager for manager, _ in conflicts if not manager.startswith(BY_HAND)})
        if foreign and not take_over:
            fields = ", ".join(sorted(field for manager, field in conflicts if manager in foreign))
            raise RolloutError(
                f"{resource.kind} {name}: {fields} belongs to {', '.join(foreign)}, which would set it back: change it there, or pause "
                "that controller and give --take-over"
            )
        if conflicts:
            query["force"] = "true"
        else:
            api.sleep(0.2)
    raise RolloutError(
        f"{resource.kind} {name} is changed by others all the time: wait for them, and run the command again"
    )


def _conflicts(status: Any) -> list[tuple[str, str]]:
    """Managers and their fields, from the answer to a refused apply."""
    causes = status.get("details", {}).get("causes", []) if isinstance(status, dict) else []
    found = []
    for cause in causes:
        if cause.get("reason") == "FieldManagerConflict":
            manager = re.search(r'conflict with "([^"]*)"', cause.get("message", ""))
            found.append((manager[1] if manager else "another manager", cause.get("field", "a field")))
    return found
