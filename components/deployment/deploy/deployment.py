"""Deployment of a model: as the champion of this machine, or as a folder and an InferenceService for a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import yaml

from components.choices import DeployTarget
from feature_repo.store import ensure_online
from thinktwice.choices import listed
from thinktwice.errors import BundleError, FeatureStoreError, PipelineError, reason
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.release.archive import ARCHIVE_FILE, MODEL_NAME, open_archive
from thinktwice.release.blessing import Blessing, require_blessing
from thinktwice.release.bundle import Manifest, bundle_hash, read_manifest
from thinktwice.release.champion import install_champion, read_champion
from thinktwice.release.feature_store import DATA, FEATURE_STORE
from thinktwice.release.feature_store import INFO_FILE as FEATURE_STORE_INFO
from thinktwice.release.model_store import version_folder
from thinktwice.release.release import copy_description

INFO_FILE = "deployment.json"
MANIFEST_NAME = "inferenceservice.yaml"
MODEL_FOLDER = "model"


def deploy_model(
    archive_dir: Path | str,
    bundle_dir: Path | str,
    feature_store_dir: Path | str,
    blessing: Path | str,
    *,
    target: str,
    state_dir: Path | str,
    out_dir: Path | str,
    out_uri: str = "",
) -> dict[str, Any]:
    """Deploy a packaged, blessed bundle with its feature store.

    Args:
        target: ``local`` makes it the champion in ``state_dir``. ``manifest`` does too, because the next blessing compares with
            the champion, and also writes ``model/`` (the same release without tables, the content of a storageUri) and
            ``inferenceservice.yaml`` to ``out_dir``. The release is signed if ``THINKTWICE_SIGNING_KEY_FILE`` is set.
        out_dir: folder to write, with ``deployment.json`` for both targets.
        out_uri: external URI of ``out_dir``; storageUri points into it.

    Returns:
        The content of ``deployment.json``; ``place`` is the location of the model.

    Raises:
        PipelineError: the target is unknown, or this bundle has no positive blessing.
        BundleError: the bundle or the archive is damaged, or the archive contains another bundle.
        FeatureStoreError: the store has other features than the model, or its online values cannot be restored.
    """
    if target not in get_args(DeployTarget):
        raise PipelineError(f"target {target!r} is unknown: choose one of {listed(DeployTarget)}")
    manifest = read_manifest(bundle_dir)  # the files are checked when they are copied
    _check_opponent(require_blessing(blessing, bundle_dir), Path(state_dir))
    archive = Path(archive_dir) / ARCHIVE_FILE
    _check_archive(archive, Path(bundle_dir))
    _check_feature_store(Path(feature_store_dir), manifest)
    info: dict[str, Any] = {
        "target": target,
        "model_version": manifest.model_version,
        "bundle_hash": bundle_hash(bundle_dir),
        "feature_service": manifest.feature_service,
    }
    # Rows in Redis are outside the store's folder: a cached materialization does not restore them.
    ensure_online(feature_store_dir)
    with atomic_dir(out_dir) as folder:
        if target == "manifest":
            model = folder / MODEL_FOLDER
            model.mkdir()
            shutil.copyfile(archive, model / ARCHIVE_FILE)
            # The tables are for training; a predictor reads the registry and the online store.
            shutil.copytree(feature_store_dir, model / FEATURE_STORE, ignore=shutil.ignore_patterns(DATA))
            info["place"] = storage_uri(out_uri or str(Path(out_dir).resolve())) + "/" + MODEL_FOLDER
            text = yaml.safe_dump(
                inference_service(manifest.model_version, info["bundle_hash"], info["place"]), sort_keys=False
            )
            (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
        champion = install_champion(
            state_dir, bundle_dir=bundle_dir, archive=archive, feature_store_dir=feature_store_dir
        )
        if target == "manifest":
            copy_description(champion.folder, folder / MODEL_FOLDER)
        info.setdefault("place", str(champion.folder))
        write_json(folder / INFO_FILE, info)
    return info


def _check_opponent(blessing: Blessing, state_dir: Path) -> None:
    """Check the champion: two concurrent runs may both be blessed against one champion, and the second must not replace the first
    without a comparison."""
    if "champion_hash" not in blessing.model_fields_set:
        return
    champion = read_champion(state_dir)
    current_hash = None if champion is None else champion.info.bundle_hash
    if current_hash not in (blessing.champion_hash, blessing.bundle_hash):
        raise PipelineError(
            f"another model (bundle {str(current_hash)[:12]}) was deployed to {state_dir} since this one was judged: run again, "
            "it is then compared with that one"
        )


def inference_service(model_version: str, bundle_hash: str, storage: str) -> dict[str, Any]:
    """A patch that sets the model version of the InferenceService of an overlay in ``manifests/``.

    The overlay contains what is common to all versions: the runtime and the deployment mode.
    """
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": MODEL_NAME,
            "labels": {"app.kubernetes.io/name": "ctr-predictor", "app.kubernetes.io/instance": MODEL_NAME},
            "annotations": {"ctr.example.org/bundle-hash": bundle_hash},
        },
        "spec": {
            "predictor": {
                "labels": {"ctr.example.org/model-version": version_folder(model_version)},
                "model": {
                    "modelFormat": {"name": "ctr-pytorch", "version": "1"},
                    "protocolVersion": "v1",
                    "storageUri": storage,
                },
            }
        },
    }


def storage_uri(uri: str) -> str:
    """The URI in KServe's notation: KFP uses the scheme ``minio``, KServe uses ``s3``."""
    uri = uri.rstrip("/")
    if uri.startswith("minio://"):
        return "s3://" + uri.removeprefix("minio://")
    return uri if "://" in uri else f"file://{uri}"


def _check_archive(archive: Path, bundle_dir: Path) -> None:
    with open_archive(archive) as content:
        if content.bundle_hash != bundle_hash(bundle_dir):
            raise BundleError(f"archive {archive} contains a different bundle from {bundle_dir}: package this bundle")


def _check_feature_store(folder: Path, manifest: Manifest) -> None:
    try:
        service = read_json(folder / FEATURE_STORE_INFO)["feature_service"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeatureStoreError(
            f"feature store {folder} cannot be read ({reason(error)}): run the materialize step"
        ) from error
    if service != manifest.feature_service:
        raise FeatureStoreError(
            f"feature store {folder} serves {service!r} and the model needs {manifest.feature_service!r}: "
            "use the feature store that the model was trained on"
        )
