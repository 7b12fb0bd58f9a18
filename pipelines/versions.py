"""What the cache of a pipeline must know and cannot see: the code behind the steps and the content of input files."""

from __future__ import annotations

import hashlib
import importlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import thinktwice

PACKAGES = ("thinktwice", "feature_repo", "components", "pipelines")
# Packages within packages that draw, start or fold results and do not change them.
WITHOUT = ("thinktwice/console", "pipelines/golden")
LIBRARIES = ("torch", "numpy", "polars", "pyarrow", "duckdb", "feast", "great-expectations", "torch-model-archiver")
SUFFIXES = (".py", ".yaml", ".json", ".html", ".properties")


def source_files() -> Iterator[tuple[str, Path]]:
    """Name and path of every source file a step may execute or read, in a stable order."""
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent).as_posix()
            if path.suffix in SUFFIXES and "__pycache__" not in name and not name.startswith(WITHOUT):
                yield name, path


def code_version() -> str:
    """Version of the package and 12 hex digits over its sources, the interpreter and the libraries that compute.

    ``0.1.0-3f2a9c0d1e2b``. Two installations with the same code give the same text.
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


def data_version(*paths: str) -> str:
    """12 hex digits over name, size and time of change of all files at or under `paths`; "" when there is none.

    It says whether a step must read its input again, so it need not read it: a log may have many gigabytes.
    """
    digest = hashlib.sha256()
    found = False
    for path in (Path(text) for text in paths if text):
        for entry in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if entry.is_file():
                found = True
                stat = entry.stat()
                digest.update(f"{entry}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12] if found else ""
