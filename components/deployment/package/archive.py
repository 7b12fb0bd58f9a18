"""A TorchServe archive from a bundle, made with torch-model-archiver, the same bytes for the same bundle."""

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
from thinktwice.release.archive import ARCHIVE_FILE, BUNDLE, HANDLER, MAR_MANIFEST, MODEL_NAME, SETTINGS_FILE
from thinktwice.release.blessing import require_blessing
from thinktwice.release.bundle import OLD_SIGNATURE_FILE, verify_bundle
from thinktwice.release.release import write_release
from thinktwice.release.signing import signing_key

#: A handler that the archiver knows and copies no file for; ours is a module of the package that is installed beside the
#: server, which the archiver has no words for.
PLACEHOLDER = "base_handler"
#: TorchServe's settings of the model. One worker with one request at a time: the candidates of a request are a batch
#: already, and TorchServe would hold a lone request back for the whole delay to fill a larger one.
MODEL_CONFIG = """\
minWorkers: 1
maxWorkers: 1
batchSize: 1
maxBatchDelay: 1
responseTimeout: 30
startupTimeout: 300
torchThreads: 1
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can hold


def write_archive(bundle_dir: Path | str, blessing: Path | str, out_dir: Path | str) -> dict[str, Any]:
    """Write ``ctr.mar`` and its ``release.json`` into the folder ``out_dir`` (replaced); returns what describes it.

    The release covers the archive alone and is signed when ``THINKTWICE_SIGNING_KEY_FILE`` names a key. It is what a model
    without a feature store needs; the deployment writes another one over archive and feature store.

    Raises:
        PipelineError: the bundle is not blessed, or the archiver failed.
        BundleError: the bundle is damaged.
    """
    manifest = verify_bundle(bundle_dir)
    require_blessing(blessing, bundle_dir)
    with atomic_dir(out_dir) as folder:
        with tempfile.TemporaryDirectory(prefix="thinktwice-archive-") as scratch:
            made = _run_archiver(Path(bundle_dir), Path(scratch), manifest.model_version)
            _normalize(made, folder / ARCHIVE_FILE, manifest.created)
        release = write_release(folder, signing_key())
    return {
        "model_version": manifest.model_version,
        "bundle_hash": release.bundle,
        "archive_sha256": release.archive.sha256,
        "bytes": release.archive.size,
    }


def _run_archiver(bundle_dir: Path, scratch: Path, version: str) -> Path:
    """Run the real torch-model-archiver in a process of its own.

    It collects files in a folder of a fixed name in the temporary folder, so two at a time would mix their files; here
    each has a temporary folder to itself. A folder among the extra files goes in with its content, hence the one around. It
    takes commas, colons and wildcards in paths for its own, so it runs in that folder and gets names alone.
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
    done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    made = out / ARCHIVE_FILE
    if done.returncode != 0 or not made.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise PipelineError(f"torch-model-archiver failed ({last[0]}): check that torch-model-archiver is installed")
    return made


def _normalize(source: Path, target: Path, created: str) -> None:
    """Copy a zip with sorted names, one fixed time, the bundle's own creation time and our handler: same bundle, same bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in sorted(old.namelist()):
            data = old.read(name)
            if name == MAR_MANIFEST:
                value = json.loads(data)
                value["createdOn"] = created
                value["model"]["handler"] = HANDLER
                data = json.dumps(value, indent=2, sort_keys=True).encode()
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            new.writestr(entry, data)
