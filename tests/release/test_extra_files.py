"""A bundle holds what its configuration needs besides the common files, verified like them, and nothing more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.serving.small import identity, with_members
from thinktwice.errors import BundleError
from thinktwice.evaluate.package import write_bundle
from thinktwice.release.bundle import MANIFEST_FILE, bundle_files, load_bundle
from thinktwice.release.profile import PROFILE_FILE
from thinktwice.testtime.config import SecondLook, TestTimeConfig
from thinktwice.testtime.modes import PRESETS
from thinktwice.testtime.opinions.config import Members
from thinktwice.testtime.store import EXTRA_FILES, MEMBER_FOLDERS, needed_files
from thinktwice.testtime.triggers import Always

BUNDLE_FILES, FURTHER_FILES = bundle_files()
MEMBER = {"members/0/model.json", "members/0/weights.safetensors"}


@pytest.fixture(scope="module")
def parts(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts of a bundle that asks one further trunk; its folder holds heads, combinations and a second one besides."""
    given = {f"{n}_dir": small / "parts" / n for n in ("training_set", "model", "test_time", "evaluation")}
    return with_members(given, tmp_path_factory.mktemp("members") / "test_time")


@pytest.fixture
def bundle(parts: dict[str, Path], tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", **parts, identity=identity())
    return tmp_path / "bundle"


def test_only_what_the_configuration_needs_is_shipped(bundle: Path, parts: dict[str, Path]) -> None:
    lying_there = {p.relative_to(parts["test_time_dir"]).as_posix() for p in parts["test_time_dir"].rglob("*")}
    assert {"heads.safetensors", "combinations.safetensors", "members/1/model.json"} <= lying_there
    shipped = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert shipped == BUNDLE_FILES | MEMBER | {MANIFEST_FILE, PROFILE_FILE, "backend.json"}
    assert load_bundle(bundle).manifest.files.keys() == BUNDLE_FILES | MEMBER | {PROFILE_FILE, "backend.json"}


def test_a_loaded_member_reads_the_table_of_the_model(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    (member,) = loaded.engine.extras.members
    assert member.embedding.table is loaded.model.embedding.table
    scored = loaded.engine.score(loaded.encoder.encode_rows([{"user_id": f"u{i}"} for i in range(10)]))
    assert scored.num_paths.tolist().count(2) == 2  # a fifth of the rows
    assert np.isfinite(scored.logit).all()


def test_every_file_that_any_mode_needs_is_known_to_bundles() -> None:
    configs = [
        *PRESETS.values(),
        TestTimeConfig(second_look=SecondLook(trigger=Always(), opinion=Members(count=len(MEMBER_FOLDERS)))),
    ]
    needed = {name for config in configs for name in needed_files(config)}
    assert needed <= BUNDLE_FILES | FURTHER_FILES
    assert set(EXTRA_FILES) <= needed


@pytest.mark.parametrize("name", sorted(MEMBER))
def test_further_files_are_verified_like_the_others(name: str, bundle: Path) -> None:
    whole = (bundle / name).read_bytes()
    (bundle / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"{name} has SHA-256"):
        load_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        load_bundle(bundle)


def test_a_further_file_that_the_manifest_does_not_name_is_refused(bundle: Path, parts: dict[str, Path]) -> None:
    shutil.copyfile(parts["test_time_dir"] / "heads.safetensors", bundle / "heads.safetensors")
    with pytest.raises(BundleError, match=r"heads\.safetensors is not in the manifest"):
        load_bundle(bundle)


def test_a_file_that_no_mode_knows_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    manifest["files"]["members/2/model.json"] = manifest["files"]["members/0/model.json"]
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"lists the unknown file members/2/model\.json"):
        load_bundle(bundle)


def test_a_bundle_without_the_members_that_it_asks_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    for name in MEMBER:
        del manifest["files"][name]
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest))
    shutil.rmtree(bundle / "members")
    with pytest.raises(
        BundleError, match="needs 1 further trunks but 0 are available: package the members with the model"
    ):
        load_bundle(bundle)


def test_a_missing_part_is_named_and_nothing_is_left(parts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(parts["test_time_dir"], tmp_path / "part")
    (tmp_path / "part" / "members/0/weights.safetensors").unlink()
    with pytest.raises(BundleError, match=r"part contains no members/0/weights\.safetensors, a bundle needs it"):
        write_bundle(tmp_path / "bundle", **{**parts, "test_time_dir": tmp_path / "part"}, identity=identity())
    assert [p.name for p in tmp_path.iterdir()] == ["part"]


def test_counts_of_other_weights_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    """The same model trained for longer: its counts say nothing of these weights."""
    shutil.copytree(parts["test_time_dir"], tmp_path / "part")
    content = json.loads((tmp_path / "part" / "test_time.json").read_text())
    content["weights"] = "f" * 64
    (tmp_path / "part" / "test_time.json").write_text(json.dumps(content))
    write_bundle(tmp_path / "bundle", **{**parts, "test_time_dir": tmp_path / "part"}, identity=identity())
    with pytest.raises(
        BundleError, match=r"taken for other weights \(ffffffffffff\.\.\.\).*fit the test-time parameters again"
    ):
        load_bundle(tmp_path / "bundle")
