"""Files that one run keeps for the next: a checksum of each, so that a damaged one is never read as if it were whole. The state names
them all, and has a checksum of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import xxhash
from pydantic import ValidationError

from thinktwice.files import json_bytes, read_json, write_json
from thinktwice.frozen import Frozen

CHUNK = 1 << 20
S = TypeVar("S", bound=Frozen)


def checksums(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """XXH3 of every file, by its path within the folder."""
    return {str(path.relative_to(folder)): _checksum(path) for path in files}


def damaged(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """The files of :func:`checksums` that are missing or have another content."""
    return [name for name, digest in sorted(expected.items()) if not _is(folder / name, digest)]


def write_state(path: Path, state: Frozen) -> None:
    """Write a state with its checksum, atomically."""
    content = state.model_dump(mode="json")
    write_json(path, {"checksum": xxhash.xxh3_128_hexdigest(json_bytes(content)), "state": content})


def read_state(path: Path, kind: type[S]) -> S | None:
    """The state of :func:`write_state`; None if there is none, or one of another format.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = read_json(path)
        content = found["state"]
        whole = found["checksum"] == xxhash.xxh3_128_hexdigest(json_bytes(content))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged") from error
    if not whole:
        raise ValueError(f"{path} is damaged")
    try:
        return kind.model_validate(content)
    except ValidationError:  # of another version of this code
        return None


def link(source: Path, target: Path) -> None:
    """The same file at another path: a link where the file system has them, else a copy. It is never written again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def set_aside(folder: Path, names: Iterable[str], place: Path) -> Path | None:
    """Keep damaged files in a new numbered folder below ``place``, for whoever looks for the reason: the run that follows replaces
    them. Returns that folder, None if no file is there."""
    there = [name for name in names if (folder / name).is_file()]
    if not there:
        return None
    place.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in place.iterdir() if path.name.isdigit()]
    target = place / str(max(numbers, default=0) + 1)
    for name in there:
        link(folder / name, target / name)
    return target


def _is(path: Path, digest: str) -> bool:
    try:
        return _checksum(path) == digest
    except OSError:  # missing, or its disk cannot read it
        return False


def _checksum(path: Path) -> str:
    """Against damage, not against forgery; much faster than a disk."""
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()
