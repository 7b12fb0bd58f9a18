"""TorchServe archives, made from a bundle with torch-model-archiver; reproducible byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from thinktwice.errors import PipelineError
from thinktwice.files import atomic_dir
from thinktwice.hashing import BLOCK
from thinktwice.progress import counter
from thinktwice.release.archive import ARCHIVE_FILE, BUNDLE, HANDLER, MAR_MANIFEST, MODEL_NAME, SETTINGS_FILE
from thinktwice.release.blessing import require_blessing
from thinktwice.release.bundle import OLD_SIGNATURE_FILE, verify_bundle
from thinktwice.release.release import write_release
from thinktwice.release.signing import signing_key

#: A built-in handler, for which the archiver copies no file; ours is a module of the installed package, which the archiver does
#: not support.
PLACEHOLDER = "base_handler"
#: TorchServe's settings of the model. One worker with one request at a time: the candidates of a request already are a batch, and
#: TorchServe would delay a single request for the whole batch delay to fill a larger batch.
MODEL_CONFIG = """\
minWorkers: 1
maxWorkers: 1
batchSize: 1
maxBatchDelay: 1
responseTimeout: 30
startupTimeout: 300
torchThreads: 1
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip file


def write_archive(bundle_dir: Path | str, blessing: Path | str, out_dir: Path | str) -> dict[str, Any]:
    """Write ``ctr.mar`` and its ``release.json`` to the folder ``out_dir`` (replaced). Returns their description.

    The release covers only the archive and is signed if ``THINKTWICE_SIGNING_KEY_FILE`` is set. It is sufficient for a model without
    a feature store; the deployment writes another one that covers archive and feature store.

    Raises:
        PipelineError: the bundle is not blessed, or the archiver failed.
        BundleError: the bundle is damaged.
    """
    require_blessing(blessing, bundle_dir)
    return pack_bundle(bundle_dir, out_dir)


def pack_bundle(bundle_dir: Path | str, out_dir: Path | str) -> dict[str, Any]:
    """The same for a bundle that need not be blessed: a challenger, which only an experiment may serve.

    Raises:
        PipelineError: the archiver failed.
        BundleError: the bundle is damaged.
    """
    manifest = verify_bundle(bundle_dir)
    with atomic_dir(out_dir) as folder:
        with tempfile.TemporaryDirectory(prefix="thinktwice-archive-") as scratch:
            raw_archive = _run_archiver(Path(bundle_dir), Path(scratch), manifest.model_version)
            _normalize(raw_archive, folder / ARCHIVE_FILE, manifest.created)
        release = write_release(folder, signing_key())
    return {
        "model_version": manifest.model_version,
        "bundle_hash": release.bundle,
        "archive_sha256": release.archive.sha256,
        "bytes": release.archive.size,
    }


def _run_archiver(bundle_dir: Path, scratch: Path, version: str) -> Path:
    """Run torch-model-archiver in a separate process.

    It collects files in a fixed folder name in the temporary folder, so concurrent runs would mix their files; therefore each run
    has its own temporary folder. Only the content of an extra folder is archived, hence the enclosing one. It interprets commas,
    colons and wildcards in paths, so it runs in that folder and gets only names.
    """
    extra, temporary, out = scratch / "extra", scratch / "tmp", scratch / "out"
    for folder in (extra, temporary, out):
        folder.mkdir()
    shutil.copytree(bundle_dir, extra / BUNDLE, ignore=shutil.ignore_patterns(OLD_SIGNATURE_FILE))
    config = scratch / SETTINGS_FILE
    config.write_text(MODEL_CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", MODEL_NAME, "--version", version]
    command += ["--handler", PLACEHOLDER, "--extra-files", extra.name, "--config-file", config.name]
    command += ["--export-path", out.name, "--archive-format", "zip-store"]
    environment = {**os.environ, "TMPDIR": str(temporary.absolute())}
    result = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    archive = out / ARCHIVE_FILE
    if result.returncode != 0 or not archive.is_file():
        last_line = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no output"]
        raise PipelineError(
            f"torch-model-archiver failed ({last_line[0]}): check that torch-model-archiver is installed"
        )
    return archive


def _normalize(source: Path, target: Path, created: str) -> None:
    """Copy a zip with sorted names, a fixed time, the bundle's creation time and our handler, so that equal bundles give equal bytes."""
    with zipfile.ZipFile(source) as source_zip, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as target_zip:
        advance = counter(stage="package", total=sum(i.file_size for i in source_zip.infolist()), label="archive")
        for name in sorted(source_zip.namelist()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            size = source_zip.getinfo(name).file_size
            if name == MAR_MANIFEST:
                value = json.loads(source_zip.read(name))
                value["createdOn"] = created
                value["model"]["handler"] = HANDLER
                target_zip.writestr(entry, json.dumps(value, indent=2, sort_keys=True).encode())
                advance(size)
                continue
            entry.file_size = size  # zipfile chooses the form of the entry by it
            with source_zip.open(name) as file, target_zip.open(entry, "w") as out:
                while block := file.read(BLOCK):
                    out.write(block)
                    advance(len(block))
