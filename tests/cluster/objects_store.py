"""Objects of a Kubernetes namespace with server-side apply: field managers, conflicts, generations, resource versions.

Lists are atomic here, as they are in the fields that our code applies (``spec.canary`` has no list type, data of a ConfigMap has none).
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Path = tuple[str, ...]
NOT_FIELDS = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


class ConflictError(Exception):
    """Fields that other managers own: (manager, field)."""

    def __init__(self, causes: list[tuple[str, str]]) -> None:
        super().__init__(causes)
        self.causes = causes


def leaves(value: Any, at: Path = ()) -> dict[Path, Any]:
    """Values by path; a list, an empty object and a scalar are leaves."""
    if isinstance(value, dict) and value:
        found: dict[Path, Any] = {}
        for key, part in value.items():
            found |= leaves(part, (*at, key))
        return found
    return {} if not at or at in NOT_FIELDS else {at: value}


def _get(value: Any, at: Path) -> Any:
    for key in at:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _set(value: Json, at: Path, leaf: Any) -> None:
    for key in at[:-1]:
        value = value.setdefault(key, {})
    value[at[-1]] = copy.deepcopy(leaf)


def _remove(value: Json, at: Path) -> None:
    parents = [value]
    for key in at[:-1]:
        if not isinstance(parents[-1].get(key), dict):
            return
        parents.append(parents[-1][key])
    parents[-1].pop(at[-1], None)
    for parent, key in zip(reversed(parents[:-1]), reversed(at[:-1]), strict=True):
        if parent[key] == {}:
            del parent[key]


@dataclass
class Stored:
    """An object and who owns its fields."""

    value: Json
    owners: dict[str, set[Path]] = field(default_factory=dict)


class Store:
    """Objects by (plural, name)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Stored] = {}
        self._numbers = itertools.count(1)

    def get(self, plural: str, name: str) -> Json | None:
        found = self.objects.get((plural, name))
        return None if found is None else found.value

    def all(self, plural: str) -> list[Json]:
        return [stored.value for (kind, _), stored in list(self.objects.items()) if kind == plural]

    def put(self, plural: str, value: Json, manager: str = "controller") -> Json:
        """Create or replace an object. Ownership of changed fields goes to ``manager``."""
        name = value["metadata"]["name"]
        before = self.objects.get((plural, name))
        stored = Stored(copy.deepcopy(value), {} if before is None else before.owners)
        old = {} if before is None else leaves(_fields(before.value))
        new = leaves(_fields(stored.value))
        changed = {at for at, leaf in new.items() if old.get(at) != leaf}
        for owned in stored.owners.values():
            owned -= changed | (set(old) - set(new))
        stored.owners.setdefault(manager, set()).update(changed)
        self._number(stored, None if before is None else before.value)
        self.objects[(plural, name)] = stored
        return stored.value

    def planned(self, plural: str, config: Json, manager: str, force: bool) -> Stored:
        """What an apply would make of an object.

        Raises:
            ConflictError: other managers own fields with other values.
        """
        name = config["metadata"]["name"]
        before = self.objects.get((plural, name))
        stored = (
            Stored({"apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": {"name": name}})
            if before is None
            else copy.deepcopy(before)
        )
        wanted = leaves(_fields(config))
        causes = []
        for at, leaf in wanted.items():
            for other, owned in stored.owners.items():
                clash = at in owned or any(o[: len(at)] == at or at[: len(o)] == o for o in owned)
                if other != manager and clash and _get(stored.value, at) != leaf:
                    if not force:
                        causes.append((other, "." + ".".join(at)))
                    owned.discard(at)
        if causes:
            raise ConflictError(causes)
        others = {at for other, owned in stored.owners.items() if other != manager for at in owned}
        for at in stored.owners.get(manager, set()) - set(wanted) - others:
            _remove(stored.value, at)
        for at, leaf in wanted.items():
            _set(stored.value, at, leaf)
        stored.owners[manager] = set(wanted)
        return stored

    def commit(self, plural: str, stored: Stored) -> Json:
        name = stored.value["metadata"]["name"]
        before = self.objects.get((plural, name))
        self._number(stored, None if before is None else before.value)
        self.objects[(plural, name)] = stored
        return stored.value

    def delete(self, plural: str, name: str) -> Json | None:
        found = self.objects.pop((plural, name), None)
        return None if found is None else found.value

    def _number(self, stored: Stored, before: Json | None) -> None:
        metadata = stored.value["metadata"]
        if before is None:
            metadata |= {
                "uid": f"uid-{next(self._numbers)}",
                "generation": 1,
                "resourceVersion": str(next(self._numbers)),
            }
            return
        old = before["metadata"]
        metadata["uid"] = old["uid"]
        metadata["generation"] = old["generation"] + (stored.value.get("spec") != before.get("spec"))
        metadata["resourceVersion"] = old["resourceVersion"]
        if stored.value != before:
            metadata["resourceVersion"] = str(next(self._numbers))


def _fields(value: Json) -> Json:
    """An object without what the server itself writes."""
    metadata = {key: part for key, part in value.get("metadata", {}).items() if key not in OF_THE_SERVER}
    return {key: part for key, part in value.items() if key not in ("status", "metadata")} | {"metadata": metadata}
