"""KFP's local cache, extended to detect incomplete outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.local import cache as kfp_cache

from thinktwice.files import read_json, sha256_text, write_json


def tree_digest(path: Path) -> str:
    """A digest of the names and sizes of all files at or under `path`; "" if `path` does not exist."""
    if path.is_file():
        return sha256_text(path.name, str(path.stat().st_size))
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    parts = [part for entry in files for part in (str(entry.relative_to(path)), str(entry.stat().st_size))]
    return sha256_text(*parts) if path.exists() else ""


def tree_bytes(path: Path) -> int:
    """Size of all files at or under `path`; 0 if it does not exist."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def artifacts_in(outputs: dict[str, Any]) -> Iterator[dsl.Artifact]:
    """The artifacts among the outputs of a task."""
    return (value for value in outputs.values() if isinstance(value, dsl.Artifact))


class CheckedCache(kfp_cache.LocalCache):
    """KFP's local cache, which also detects an output folder with lost or changed files.

    KFP only checks whether the path of an output exists: a folder that was emptied would be passed to the next step.
    Next to each entry, a file stores digests of the outputs and the messages of the step.
    """

    def __init__(self, cache_root: str) -> None:
        super().__init__(cache_root)
        self.hits: set[str] = set()
        self.task = ""
        self.said: list[list[str]] = []  # (kind, text) of the notes and messages of the task

    def _beside(self, key: str) -> Path:
        return Path(self.cache_root) / f"{key}.outputs"

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        for artifact in artifacts_in(outputs):
            # Metrics are stored in metadata and have no file; KFP would treat the missing file as a deleted output.
            Path(artifact.uri).parent.mkdir(parents=True, exist_ok=True)
            if not Path(artifact.uri).exists():
                Path(artifact.uri).touch()
        trees = {artifact.uri: tree_digest(Path(artifact.uri)) for artifact in artifacts_in(outputs)}
        write_json(self._beside(key), {"trees": trees, "said": self.said})
        super().put(key, outputs)

    def get(self, key: str) -> dict[str, Any] | None:
        outputs = super().get(key)
        entry_file = self._beside(key)
        if outputs is None or not entry_file.exists():
            return None
        entry = read_json(entry_file)
        if any(entry["trees"].get(a.uri) != tree_digest(Path(a.uri)) for a in artifacts_in(outputs)):
            return None
        self.hits.add(self.task)
        self.said = list(entry["said"])
        return outputs
