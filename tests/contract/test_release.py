"""Both servers serve a signed release, and refuse every other one before a line of it could run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.config import ServingConfig
from serving.local import kserve_process, torchserve_process
from tests.contract.test_contract import V1, ask
from tests.features.test_untrusted import change_registry, transformed
from tests.server.conftest import free_port
from tests.serving.releases import pack, rehash, rezip, with_tensor
from thinktwice.errors import BundleError, ServerError
from thinktwice.release.champion import Champion
from thinktwice.release.release import ReleasePolicy, write_release
from thinktwice.release.signing import TRUSTED_KEYS, make_keys

pytestmark = pytest.mark.server

ONE = {
    "instances": [{"user_id": "u1", "candidates": ["i1", "i2"], "context": {"slot": "s1", "bid": 0.5, "timestamp": 0}}]
}


@pytest.fixture(params=["torchserve", "kserve"])
def running(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return torchserve_process.running if request.param == "torchserve" else kserve_process.running


@pytest.fixture
def release(champion: Champion, tmp_path: Path) -> Path:
    shutil.copytree(champion.folder, tmp_path / "release")
    return tmp_path / "release"


def serve(running: Callable[..., Any], release: Path, **more: Any) -> Any:
    return running(
        release / "ctr.mar",
        feature_store=release / "feature_store",
        port=free_port(),
        log=release.parent / "log",
        **more,
    )


def refusal(running: Callable[..., Any], release: Path, **more: Any) -> str:
    with pytest.raises((BundleError, ServerError)) as caught, serve(running, release, **more):
        raise AssertionError("it came up")
    return str(caught.value)


def test_a_signed_release_is_served(
    running: Callable[..., Any], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a change of its folder afterwards is not seen."""
    private, public = make_keys(tmp_path / "keys")
    written = write_release(release, private)
    monkeypatch.setenv(TRUSTED_KEYS, str(public))
    policy = ReleasePolicy(oldest=datetime.fromisoformat(written.created), pinned=(written.bundle,))
    with serve(running, release, config=ServingConfig(release=policy)) as server:
        before = ask(server.url, V1, ONE)
        assert before.status == 200 and not before.json["predictions"][0]["cold_user"]
        for name in ("ctr.mar", "feature_store/registry.db", "feature_store/feature_store.yaml"):
            (release / name).write_bytes(b"changed")
        assert ask(server.url, V1, ONE).json == before.json


def test_an_unsigned_release_is_refused_where_keys_are_trusted(
    running: Callable[..., Any], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, str(make_keys(tmp_path / "keys")[1]))
    assert "is not signed, and THINKTWICE_TRUSTED_KEYS requires a signature" in refusal(running, release)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (ReleasePolicy(oldest=datetime(2999, 1, 1, tzinfo=timezone.utc)), "the settings accept none before 2999-01-01"),
        (ReleasePolicy(pinned=("0" * 64,)), "is not one of the pinned ones"),
    ],
)
def test_what_is_too_old_or_not_pinned_is_refused_before_java_starts(
    release: Path, monkeypatch: pytest.MonkeyPatch, policy: ReleasePolicy, words: str
) -> None:
    monkeypatch.setattr(torchserve_process, "_launch", lambda *a: pytest.fail("Java starts"))
    assert words in refusal(torchserve_process.running, release, config=ServingConfig(release=policy))


def test_code_in_an_archive_does_not_run(
    running: Callable[..., Any], release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\nfrom serving.adapters.torchserve_handler import CTRHandler\n".encode()

    def put(files: dict[str, bytes]) -> None:
        files["handler.py"] = files["json.py"] = code
        files["MAR-INF/MANIFEST.json"] = files["MAR-INF/MANIFEST.json"].replace(
            b"serving.adapters.torchserve_handler", b"handler.py"
        )

    rezip(release / "ctr.mar", release / "changed.mar", put)
    (release / "changed.mar").replace(release / "ctr.mar")
    (release / "release.json").unlink()  # nobody signed it, nobody asks for it
    monkeypatch.setattr(torchserve_process, "_launch", lambda *a: pytest.fail("Java starts"))
    assert "contains code ('handler.py')" in refusal(running, release)
    assert not canary.exists()


def test_code_in_a_registry_does_not_run(running: Callable[..., Any], release: Path, tmp_path: Path) -> None:
    """Even in a release whose hashes fit."""
    canary = tmp_path / "canary"
    change_registry(release / "feature_store", lambda registry: transformed(registry, canary))
    write_release(release)
    message = refusal(running, release)
    assert "registry.db is refused (it contains feature_views.spec.feature_transformation" in message
    assert not canary.exists()


def test_weights_that_are_not_numbers_are_named_by_the_kserve_predictor(champion: Champion, tmp_path: Path) -> None:
    shutil.copytree(champion.bundle_dir, tmp_path / "bundle")
    with_tensor(tmp_path / "bundle" / "weights.safetensors", "bias", lambda found: found + np.inf)
    rehash(tmp_path / "bundle")
    archive = pack(tmp_path / "bundle", tmp_path / "packed")
    shutil.copytree(champion.feature_store_dir, archive.parent / "feature_store")
    assert "weights.safetensors contains numbers in 'bias' that are not finite" in refusal(
        kserve_process.running, archive.parent
    )
