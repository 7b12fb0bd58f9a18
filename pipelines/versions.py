"""Versions in the cache keys of the pipeline, which KFP cannot see: the code of the steps and the content of input files."""

from __future__ import annotations

import hashlib
import importlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import thinktwice
from thinktwice.storage.location import is_remote
from thinktwice.storage.object_path import AnyPath, Buckets, ObjectPath

PACKAGES = ("thinktwice", "feature_repo", "components", "pipelines")
# Subpackages that do not affect results.
WITHOUT = ("thinktwice/console", "pipelines/golden")
LIBRARIES = ("torch", "numpy", "polars", "pyarrow", "duckdb", "feast", "great-expectations", "torch-model-archiver")
SUFFIXES = (".py", ".yaml", ".json", ".html", ".properties")


def source_files() -> Iterator[tuple[str, Path]]:
    """Name and path of every source file that a step may execute or read, in a stable order."""
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent).as_posix()
            if path.suffix in SUFFIXES and "__pycache__" not in name and not name.startswith(WITHOUT):
                yield name, path


def code_version() -> str:
    """Package version and a hash (12 hex digits) of its sources, the interpreter and the computing libraries.

    Example: ``0.1.0-3f2a9c0d1e2b``. Installations with the same code have the same version.
    """
    digest = hashlib.sha256(platform.python_version().encode())
    for library in LIBRARIES:
        try:
            digest.update(f"{library}=={version(library)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{library} is not installed\n".encode())
    for name, path in source_files():
        digest.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"{thinktwice.__version__}-{digest.hexdigest()[:12]}"


def read_files(source: str, source_path: str, schema_path: str) -> list[str | AnyPath]:
    """The files that a run reads: the schema, the log and the tables that the schema names.

    Raises:
        DataError, SchemaError, StorageError: as when they are read.
    """
    from thinktwice.data.sources.paths import expanded
    from thinktwice.data.sources.registry import source_named
    from thinktwice.schema import load_schema
    from thinktwice.schema.tables import located, table_paths

    several = source_named(source).several
    files: list[str | AnyPath] = [*filter(None, [schema_path])]
    if source_path:
        files += expanded(source_path) if several else [source_path]
    if schema_path:
        files += [
            file for path in table_paths(located(load_schema(schema_path), schema_path)) for file in expanded(path)
        ]
    return files


def data_version(*paths: str | AnyPath) -> str:
    """Hash (12 hex digits) of name, size and modification time (of objects: ETag) of all files at or under `paths`; "" if
    there are none.

    It indicates whether a step must read its input again, without reading the input, which may have many gigabytes.
    """
    digest = hashlib.sha256()
    any_file = False
    for path in paths:
        for line in _files_of(path) if path else ():
            any_file = True
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:12] if any_file else ""


def _files_of(path: str | AnyPath) -> Iterator[str]:
    if isinstance(path, str):
        path = Buckets().path(path) if is_remote(path) else Path(path)
    if isinstance(path, ObjectPath):
        for file in [path] if path.is_file() else [found for found, _ in path.objects()]:
            yield f"{file}\n{file.stat().st_size}\n{file.stat().version}"
        return
    for entry in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if entry.is_file():
            stat = entry.stat()
            yield f"{entry}\n{stat.st_size}\n{stat.st_mtime_ns}"
