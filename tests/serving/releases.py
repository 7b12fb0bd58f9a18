"""Bundles, archives and releases for tests, changed as somebody would who can write them: with consistent hashes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from components.deployment.package.archive import write_archive
from tests.serving.small import bless
from thinktwice.files import read_json, write_json
from thinktwice.hashing import FileEntry
from thinktwice.release.bundle import MANIFEST_FILE, bundle_hash


def rehash(bundle: Path) -> None:
    """Make the manifest of a bundle name its files as they are now."""
    manifest = read_json(bundle / MANIFEST_FILE)
    manifest["files"] = {name: FileEntry.of(bundle / name).model_dump() for name in manifest["files"]}
    write_json(bundle / MANIFEST_FILE, manifest)


def pack(bundle: Path, folder: Path) -> Path:
    """The archive of a bundle, below ``folder``."""
    write_archive(bundle, bless(folder / "blessing", bundle_hash(bundle)), folder / "archive")
    return folder / "archive" / "ctr.mar"


def with_tensor(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one tensor of a safetensors file."""
    tensors = load_file(str(path))
    tensors[name] = np.array(change(tensors[name].copy()), order="C")
    save_file(tensors, str(path))


def rezip(archive: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive whose files by name were changed."""
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in files.items():
            new.writestr(name, data)
    return target
