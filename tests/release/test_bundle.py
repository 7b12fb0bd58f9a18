"""A bundle is complete, hashed and deterministic, and one that is not is refused with a sentence that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.small import PLAIN_SCHEMA, identity, make_bundle, write_parts
from thinktwice.errors import BundleError
from thinktwice.evaluate.package import write_bundle
from thinktwice.files import read_json, sha256_file, write_json
from thinktwice.models import backends
from thinktwice.models.backends import choose
from thinktwice.release.bundle import MANIFEST_FILE, bundle_files, bundle_hash, load_bundle, verify_bundle
from thinktwice.release.profile import PROFILE_FILE

BUNDLE_FILES, FURTHER_FILES = bundle_files()


def test_what_was_written_is_loaded(small: Path) -> None:
    bundle = load_bundle(small / "bundle")
    assert bundle.manifest.files.keys() == BUNDLE_FILES | {PROFILE_FILE, "backend.json"}
    assert bundle.manifest.model_version == identity().model_version
    assert bundle.hash == bundle_hash(small / "bundle")
    assert len(bundle.hash) == 64
    scored = bundle.engine.score(bundle.encoder.encode_rows([{}, {"user_id": "u1", "item_id": "i1"}]))
    assert scored.probability.shape == (2,)
    assert ((scored.probability > 0) & (scored.probability < 1)).all()


def test_the_packaged_backend_scores(small: Path) -> None:
    engine = load_bundle(small / "bundle").engine
    assert engine.backend.name == json.loads((small / "bundle" / "backend.json").read_bytes())["backend"] == "folded"
    assert len(engine.backend.sizes) >= 1


@pytest.mark.parametrize("what", ["parity", "bits"])
def test_eager_torch_scores_where_the_packaged_backend_is_not_as_good(
    what: str, small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another machine may add in another order than the one that packaged the model."""
    if what == "parity":
        monkeypatch.setitem(choose.TOLERANCE, "folded", -1.0)
    else:
        monkeypatch.setattr(backends, "verify_sizes", lambda backend: backend.name == "eager")
    bundle = load_bundle(small / "bundle")
    assert bundle.engine.backend.name == "eager"
    assert "backend folded is not used" in caplog.text
    assert bundle.engine.score(bundle.encoder.encode_rows([{}])).probability.shape == (1,)


def test_the_same_parts_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    parts = {f"{n}_dir": small / "parts" / n for n in ("training_set", "model", "test_time", "evaluation")}
    write_bundle(tmp_path / "again", **parts, identity=identity())
    assert bundle_hash(tmp_path / "again") == bundle_hash(small / "bundle")
    for name in (*BUNDLE_FILES, MANIFEST_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (small / "bundle" / name).read_bytes()


def test_other_identity_other_hash(small: Path, tmp_path: Path) -> None:
    parts = {f"{n}_dir": small / "parts" / n for n in ("training_set", "model", "test_time", "evaluation")}
    write_bundle(tmp_path / "b", **parts, identity=identity().model_copy(update={"snapshot_id": "other"}))
    assert bundle_hash(tmp_path / "b") != bundle_hash(small / "bundle")


def test_a_log_without_entities(tmp_path: Path) -> None:
    make_bundle(tmp_path, PLAIN_SCHEMA)
    assert load_bundle(tmp_path / "bundle").manifest.feature_service == ""


def test_a_part_that_lacks_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts")
    (tmp_path / "parts" / "evaluation" / "report.html").unlink()
    with pytest.raises(BundleError, match=r"evaluation contains no report\.html"):
        write_bundle(tmp_path / "bundle", **parts, identity=identity())
    assert [p.name for p in tmp_path.iterdir()] == ["parts"]


def _flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))

    return damage


def _manifest(**change: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / MANIFEST_FILE).read_text())
        (folder / MANIFEST_FILE).write_text(json.dumps(value | change))

    return damage


def _link(folder: Path) -> None:
    (folder / "schema.yaml").rename(folder.parent / "schema.yaml")
    (folder / "schema.yaml").symlink_to(folder.parent / "schema.yaml")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{name: (_flip(name), name.replace(".", r"\.")) for name in sorted(BUNDLE_FILES)},
    "shorter": (
        lambda f: (f / "weights.safetensors").write_bytes(b"x"),
        r"weights\.safetensors has 1 bytes instead of",
    ),
    "missing": (lambda f: (f / "counts.safetensors").unlink(), r"counts\.safetensors is missing"),
    "extra": (lambda f: (f / "model.pkl").write_bytes(b"x"), r"model\.pkl is not in the manifest"),
    "extra below": (lambda f: (f / "report" / "x").write_bytes(b"x"), r"report/x is not in the manifest"),
    "link": (_link, r"schema\.yaml is a link"),
    "no manifest": (lambda f: (f / MANIFEST_FILE).unlink(), "is not a bundle"),
    "not json": (lambda f: (f / MANIFEST_FILE).write_text("{"), r"manifest\.json is damaged"),
    "not an object": (lambda f: (f / MANIFEST_FILE).write_text("[]"), r"manifest\.json is wrong"),
    "other format": (_manifest(format=2), "has format 2, this version of thinktwice reads format 1"),
    "unknown key": (_manifest(pickle="x"), "wrong .pickle: Extra inputs are not permitted"),
    "no files": (_manifest(files={}), "does not list counts"),
    "bad hash": (_manifest(files={"schema.yaml": {"sha256": "x", "size": 1}}), r"files\.schema\.yaml\.sha256"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(small: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    folder = tmp_path / "bundle"
    shutil.copytree(small / "bundle", folder)
    damage(folder)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_parts_of_different_models_are_neither_written_nor_loaded(small: Path, tmp_path: Path) -> None:
    other = write_parts(tmp_path / "parts", PLAIN_SCHEMA)
    parts = {f"{n}_dir": small / "parts" / n for n in ("training_set", "test_time", "evaluation")}
    with pytest.raises(BundleError, match="must come from the same bundle"):
        write_bundle(tmp_path / "bundle", **parts, model_dir=other["model_dir"], identity=identity())
    assert not (tmp_path / "bundle").exists()
    shutil.copytree(small / "bundle", tmp_path / "bundle")
    manifest = read_json(tmp_path / "bundle" / MANIFEST_FILE)
    for name in ("model.json", "weights.safetensors"):
        target = tmp_path / "bundle" / name
        shutil.copyfile(other["model_dir"] / name, target)
        manifest["files"][name] = {"sha256": sha256_file(target), "size": target.stat().st_size}
    write_json(tmp_path / "bundle" / MANIFEST_FILE, manifest)
    verify_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="other fields"):
        load_bundle(tmp_path / "bundle")
