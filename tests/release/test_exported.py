"""The trunk that a bundle carries for ONNX Runtime: arithmetic alone, and damage of it is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.release.test_hostile import FUZZ, loads_or_says_why, mutated_bytes
from tests.serving.releases import rehash
from thinktwice.errors import BundleError
from thinktwice.files import read_json, write_json
from thinktwice.models import backends, build_backbone, load_model
from thinktwice.models.backends import onnx as onnx_backend
from thinktwice.models.backends.backend import random_rows
from thinktwice.models.config import backbone_config
from thinktwice.release.bundle import MANIFEST_FILE, load_bundle


@pytest.fixture(scope="module")
def exported(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose trunk runs in ONNX Runtime; nobody writes into it."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    shutil.copytree(small / "bundle", folder)
    onnx_backend.export(load_model(folder)[0], folder)
    write_json(folder / "backend.json", {"backend": "onnx"})
    manifest = read_json(folder / MANIFEST_FILE)
    write_json(folder / MANIFEST_FILE, manifest | {"files": manifest["files"] | {"backend.onnx": {}}})
    rehash(folder)
    return folder


def test_the_exported_trunk_scores(exported: Path, small: Path) -> None:
    loaded = load_bundle(exported)
    assert loaded.engine.backend.name == "onnx"
    with_torch = load_bundle(small / "bundle").engine.score(random_rows(loaded.model, 40, seed=3))
    found = loaded.engine.score(random_rows(loaded.model, 40, seed=3))
    assert np.allclose(found.probability, with_torch.probability, atol=1e-5)


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_any_change_of_the_exported_trunk_loads_or_is_named(
    data: st.DataObject, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    if not folder.exists():
        shutil.copytree(exported, folder)
    loads_or_says_why(folder, "backend.onnx", mutated_bytes(data, (exported / "backend.onnx").read_bytes()))


@pytest.mark.parametrize("name", ["deepfm", "dcnv2", "autoint"])
@pytest.mark.parametrize("layers", [1, 3])
def test_trunks_hold_known_operators_alone(small: Path, tmp_path: Path, name: str, layers: int) -> None:
    fields = load_model(small / "parts" / "model")[0].fields
    own = {"dcnv2": {"cross_layers": layers}, "autoint": {"attention_layers": layers}}.get(name, {})
    config = backbone_config(name, dim=4, hidden=(8,) * (layers - 1), **own)
    pytest.importorskip("onnxscript")
    onnx_backend.export(build_backbone(config, fields), tmp_path)
    assert onnx_backend.load(tmp_path)


@pytest.mark.parametrize("operator", ["Loop", "If", "Scan", "com.example.Call", "Expand"])
def test_control_flow_and_foreign_operators_are_refused(exported: Path, tmp_path: Path, operator: str) -> None:
    import onnx

    model = onnx.load(str(exported / "backend.onnx"))
    domain, _, kind = operator.rpartition(".")
    model.graph.node[0].op_type, model.graph.node[0].domain = kind, domain
    (tmp_path / "backend.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=rf"backend\.onnx cannot be read \(it contains the operator '{kind}'"):
        onnx_backend.load(tmp_path)
    assert backends.open_backend(exported)
