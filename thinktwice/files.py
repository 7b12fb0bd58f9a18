"""Atomic writes: write to a temporary path, then rename. A kill at any moment leaves the old content or the new, never a
part."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinktwice.errors import ResourceError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2


@contextmanager
def full_disk_named(target: Path) -> Iterator[None]:
    """Turn the errors of a full disk, a quota and a limit on the size of files into a sentence that names ``target``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left while writing {target}: free some disk space and run again") from error
        if error.errno == errno.EFBIG:
            raise ResourceError(
                f"a file is too large while writing {target}: raise the limit on the size of files (ulimit -f)"
            ) from error
        raise


@contextmanager
def atomic_file(path: Path | str, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    By default all users may read the file: a server may run as another user than the pipeline.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_named(path):
            yield temporary
            temporary.chmod(mode)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success it replaces ``path`` (which may exist).

    An existing folder is exchanged for the new one in a single step if the system supports it (Linux); elsewhere a kill
    between two renames can leave nothing at ``path``, which a rerun repairs.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        with full_disk_named(path):
            yield temporary
            temporary.chmod(0o755)
            if not path.exists():
                os.replace(temporary, path)
            elif not _exchange(temporary, path):
                _replace_in_two_steps(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # the unfinished folder, or the previous one


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; False if the system or the file system does not support it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _replace_in_two_steps(temporary: Path, path: Path) -> None:
    backup = temporary.with_suffix(".old")
    os.replace(path, backup)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(backup, path)
        raise
    shutil.rmtree(backup)


def json_bytes(value: Any) -> bytes:
    """``value`` as stable JSON (sorted keys, no NaN), UTF-8, as it is written, hashed and signed."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode("utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write :func:`json_bytes`, atomically."""
    data = json_bytes(value)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path | str) -> Any:
    """Read a JSON file written by this project; raises OSError, or ValueError like :func:`parse_json`."""
    return parse_json(Path(path).read_bytes())


def parse_json(data: bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: it is not UTF-8, not JSON, repeats a key of an object, contains a number that is not finite or too long
            to convert, contains half of a surrogate pair, or is nested too deeply.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_different_keys, parse_constant=_finite, parse_float=_finite
        )
        if re.search(rb"\\u[dD][89a-fA-F]", data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return mapping


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(*parts: str) -> str:
    """Hex SHA-256 of several strings, including their boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
