"""Planted bundles: a copy of a bundle with a known defect, packaged as a challenger."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from components.deployment.package.archive import pack_bundle
from thinktwice.files import read_json, sha256_file, write_json
from thinktwice.hashing import FileEntry
from thinktwice.models.store import WEIGHTS_FILE, load_model, write_model
from thinktwice.release.archive import ARCHIVE_FILE
from thinktwice.release.bundle import MANIFEST_FILE, copy_bundle, load_bundle, read_manifest
from thinktwice.release.challenger import Version, install_challenger
from thinktwice.testtime.store import TEST_TIME_FILE

DEFECT = "planted: the embeddings of {share:.0%} of the values of items and users belong to other values"


def plant_worse(state_dir: Path, bundle_dir: Path, feature_store: Path, *, share: float, seed: int) -> Version:
    """Package a bundle in which the embeddings of a share of all ids are exchanged, as a wrong id table would do."""
    with tempfile.TemporaryDirectory(prefix="thinktwice-planted-") as scratch:
        bundle, archive = Path(scratch) / "bundle", Path(scratch) / "archive"
        copy_bundle(bundle_dir, bundle)
        model, info = load_model(bundle)
        table, rng = model.embedding.table, np.random.default_rng(seed)
        start = 0
        with torch.no_grad():
            for name, size in zip(model.fields.columns, model.fields.num_values, strict=True):
                entity = model.fields.entities[model.fields.names.index(name)]
                if entity != "context" and size > 2:
                    rows = 1 + np.flatnonzero(rng.random(size - 1) < share)  # row 0 is the unknown value
                    table[start + torch.from_numpy(rows)] = table[start + torch.from_numpy(rng.permutation(rows))]
                start += size
        (bundle / WEIGHTS_FILE).unlink()
        write_model(bundle, model, info)
        _rebind_counts(bundle)
        manifest = read_manifest(bundle_dir)
        files = {name: FileEntry.of(bundle / name) for name in manifest.files}
        version = f"{manifest.model_version[:40]}-planted-{round(100 * share)}"
        changed = manifest.model_copy(update={"files": files, "model_version": version})
        write_json(bundle / MANIFEST_FILE, changed.model_dump(mode="json"))
        load_bundle(bundle)
        pack_bundle(bundle, archive)
        return install_challenger(
            state_dir,
            bundle_dir=bundle,
            archive=archive / ARCHIVE_FILE,
            feature_store_dir=feature_store,
            mode="off",
            accepted=False,
            why=DEFECT.format(share=share),
        )


def _rebind_counts(bundle: Path) -> None:
    """Say that the counts belong to the changed weights."""
    content = read_json(bundle / TEST_TIME_FILE)
    if content.get("weights"):
        write_json(bundle / TEST_TIME_FILE, content | {"weights": sha256_file(bundle / WEIGHTS_FILE)})


def forget(folder: Path) -> None:
    """Remove the results of an earlier demonstration."""
    shutil.rmtree(folder, ignore_errors=True)
