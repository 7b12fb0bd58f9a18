"""What deployment means: the champion of this machine, or a folder and an InferenceService for a cluster."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, get_args

import yaml

from components.choices import DeployTarget
from feature_repo.store import ensure_online
from thinktwice.choices import listed
from thinktwice.errors import BundleError, FeatureStoreError, PipelineError, reason
from thinktwice.files import atomic_dir, read_json, sha256_text, write_json
from thinktwice.release.archive import ARCHIVE_FILE, MODEL_NAME, open_archive
from thinktwice.release.blessing import Blessing, require_blessing
from thinktwice.release.bundle import Manifest, bundle_hash, read_manifest
from thinktwice.release.champion import install_champion, read_champion
from thinktwice.release.feature_store import DATA, FEATURE_STORE
from thinktwice.release.feature_store import INFO_FILE as FEATURE_STORE_INFO
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
        target: ``local`` makes it the champion in ``state_dir``. ``manifest`` does too, because the next blessing compares
            with that one, and writes ``model/`` (the same release without tables, the content of a storageUri) and
            ``inferenceservice.yaml`` into ``out_dir``. It is signed where ``THINKTWICE_SIGNING_KEY_FILE`` names a key.
        out_dir: folder to write, in both cases with ``deployment.json``.
        out_uri: where ``out_dir`` can be found from elsewhere; storageUri points into it.

    Returns:
        The content of ``deployment.json``; ``place`` says where the model lies now.

    Raises:
        PipelineError: unknown target, or no positive blessing of this bundle.
        BundleError: bundle or archive is damaged, or the archive holds another bundle.
        FeatureStoreError: the store is that of other features than the model's, or what it holds online cannot be put right.
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
    # Rows of a Redis lie outside the store's folder: a cached materialization does not bring them back.
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
    """Two runs at a time may both be blessed against one champion: the second must not replace the first unseen."""
    if "champion_hash" not in blessing.model_fields_set:
        return
    champion = read_champion(state_dir)
    found = None if champion is None else champion.info.bundle_hash
    if found not in (blessing.champion_hash, blessing.bundle_hash):
        raise PipelineError(
            f"another model (bundle {str(found)[:12]}) was deployed to {state_dir} since this one was judged: run again, "
            "it is then compared with that one"
        )


def inference_service(model_version: str, bundle_hash: str, storage: str) -> dict[str, Any]:
    """A patch that puts one model version on the InferenceService of an overlay in ``manifests/``.

    The overlay names what is the same for every version: the runtime and the deployment mode.
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
                "labels": {"ctr.example.org/model-version": label_value(model_version)},
                "model": {
                    "modelFormat": {"name": "ctr-pytorch", "version": "1"},
                    "protocolVersion": "v1",
                    "storageUri": storage,
                },
            }
        },
    }


def label_value(text: str) -> str:
    """``text`` as a Kubernetes label value: at most 63 of the characters allowed, different texts staying different."""
    allowed = re.sub(r"[^A-Za-z0-9_.-]", "-", text).strip("-_.")
    if allowed == text and len(text) <= 63:
        return text
    return f"{allowed[:50].rstrip('-_.')}-{sha256_text(text)[:8]}".lstrip("-")


def storage_uri(uri: str) -> str:
    """The address as KServe reads it: KFP calls its object store ``minio``, KServe calls the protocol ``s3``."""
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
            "give the feature store that the model was trained on"
        )
