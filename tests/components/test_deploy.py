"""The deploy step: champion here or a folder for a cluster, and never a mixture of versions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.deployment.deploy.deployment import deploy_model, inference_service, storage_uri
from components.deployment.package.archive import write_archive
from tests.components.deployed import make_store
from tests.manifests import closed_schema
from tests.serving.small import MODEL_VERSION, PLAIN_SCHEMA, bless, make_bundle, small  # noqa: F401
from thinktwice.errors import BundleError, FeatureStoreError, PipelineError
from thinktwice.files import read_json, write_json
from thinktwice.release.bundle import bundle_hash, verify_bundle
from thinktwice.release.champion import read_champion, verify_archive
from thinktwice.release.model_store import version_folder
from thinktwice.release.release import verify_release

Deploy = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def packed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("packed")
    bless(folder / "blessing", bundle_hash(small / "bundle"))
    write_archive(small / "bundle", folder / "blessing", folder / "archive")
    make_store(folder / "store")
    return folder


@pytest.fixture
def deploy(small: Path, packed: Path, tmp_path: Path) -> Deploy:  # noqa: F811
    def call(**change: Any) -> dict[str, Any]:
        inputs = {
            "archive_dir": packed / "archive",
            "bundle_dir": small / "bundle",
            "feature_store_dir": packed / "store",
            "blessing": packed / "blessing",
            "target": "local",
            "state_dir": tmp_path / "state",
            "out_dir": tmp_path / "out",
            **change,
        }
        return deploy_model(**inputs)

    return call


def test_local_makes_the_champion(deploy: Deploy, small: Path, tmp_path: Path) -> None:  # noqa: F811
    info = deploy()
    champion = read_champion(tmp_path / "state")
    assert champion is not None
    assert info["place"] == str(champion.folder)
    assert champion.info.bundle_hash == bundle_hash(small / "bundle") == info["bundle_hash"]
    assert (champion.feature_store_dir / "online.db").read_bytes() == b"values"
    assert read_json(tmp_path / "out" / "deployment.json") == info


def test_manifest_writes_what_a_storage_uri_holds(deploy: Deploy, tmp_path: Path) -> None:
    info = deploy(target="manifest", out_uri="minio://bucket/run/deployment")
    model = tmp_path / "out" / "model"
    assert sorted(p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()) == [
        "ctr.mar",
        "feature_store/feature_store.json",
        "feature_store/feature_store.yaml",
        "feature_store/online.db",
        "release.json",
    ]
    release = verify_release(model)
    assert release.hash == verify_release(tmp_path / "state" / "champion").hash, "one release, here without its tables"
    service = yaml.safe_load((tmp_path / "out" / "inferenceservice.yaml").read_text())
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://bucket/run/deployment/model" == info["place"]
    assert "runtime" not in service["spec"]["predictor"]["model"], "the overlay names it"
    assert service["spec"]["predictor"]["labels"]["ctr.example.org/model-version"] == MODEL_VERSION


def test_a_model_for_a_cluster_is_what_the_next_blessing_compares_with(
    deploy: Deploy,
    small: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    info = deploy(target="manifest", out_uri="minio://bucket/run/deployment")
    champion = read_champion(tmp_path / "state")
    assert champion is not None
    assert champion.info.bundle_hash == bundle_hash(small / "bundle") == info["bundle_hash"]
    assert verify_archive(champion) and verify_bundle(tmp_path / "state" / "champion" / "bundle")
    assert read_json(tmp_path / "out" / "deployment.json") == info


def test_the_online_rows_are_made_sure_of(
    deploy: Deploy,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(folder: Path) -> int:
        assert folder == packed / "store"
        raise FeatureStoreError("the Redis answers other values")

    monkeypatch.setattr("components.deployment.deploy.deployment.ensure_online", gone)
    with pytest.raises(FeatureStoreError, match="other values"):
        deploy()
    assert read_champion(tmp_path / "state") is None and not (tmp_path / "out").exists()


def test_the_inference_service_has_no_unknown_field(shared: Path) -> None:
    value = inference_service("a version/with: odd characters", "0" * 64, "s3://b/x/model")
    assert closed_schema.errors(value, shared / "schemas") == []


def test_uris_and_labels() -> None:
    assert storage_uri("minio://b/p/") == "s3://b/p"
    assert storage_uri("gs://b/p") == "gs://b/p"
    assert storage_uri("/mnt/x") == "file:///mnt/x"
    assert version_folder("0.1.0-abc") == "0.1.0-abc"
    odd = [version_folder(text) for text in ("a b", "a:b", "x" * 64, "x" * 65, "+")]
    assert len(set(odd)) == 5
    assert all(len(label) <= 63 and label[0].isalnum() and label[-1].isalnum() for label in odd)


def test_a_mixture_is_refused(deploy: Deploy, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="serves 'ctr_other' and the model needs 'ctr_small_20260101_abc'"):
        deploy(feature_store_dir=make_store(tmp_path / "other", "ctr_other"))
    with pytest.raises(FeatureStoreError, match="cannot be read"):
        deploy(feature_store_dir=tmp_path)
    with pytest.raises(BundleError, match="cannot be read"):
        deploy(archive_dir=tmp_path)
    make_bundle(tmp_path / "wrong", PLAIN_SCHEMA)
    write_archive(
        tmp_path / "wrong" / "bundle",
        bless(tmp_path / "wrong" / "blessing", bundle_hash(tmp_path / "wrong" / "bundle")),
        tmp_path / "wrong" / "archive",
    )
    with pytest.raises(BundleError, match="contains a different bundle"):
        deploy(archive_dir=tmp_path / "wrong" / "archive")
    with pytest.raises(PipelineError, match="not blessed"):
        deploy(blessing=bless(tmp_path / "no", "0" * 64, blessed=False))
    with pytest.raises(PipelineError, match="target 'moon' is unknown: choose one of local, manifest"):
        deploy(target="moon")
    assert read_champion(tmp_path / "state") is None
    assert not (tmp_path / "out").exists()


def test_a_champion_the_model_was_never_compared_with_is_not_replaced(
    deploy: Deploy,
    small: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def judged_against(champion: str | None) -> Path:
        return bless(tmp_path / f"blessing-{champion}", bundle_hash(small / "bundle"), champion_hash=champion)

    with pytest.raises(PipelineError, match=r"another model .* was deployed .* run again"):
        deploy_over(tmp_path, deploy, judged_against(None))
    with pytest.raises(PipelineError, match="another model"):
        deploy_over(tmp_path, deploy, judged_against("2" * 64))
    deploy_over(tmp_path, deploy, judged_against("1" * 64))


def deploy_over(tmp_path: Path, deploy: Deploy, blessing: Path) -> None:
    """Deploy onto a state folder whose champion is the bundle 111..."""
    folder = tmp_path / "state" / "versions" / "000001-x"
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "model_version": "x",
        "bundle_hash": "1" * 64,
        "archive_sha256": "0",
        "feature_service": "",
        "deployed_at": 0.0,
    }
    write_json(folder / "champion.json", info)
    link = tmp_path / "state" / "champion"
    link.unlink(missing_ok=True)
    link.symlink_to(folder, target_is_directory=True)
    deploy(blessing=blessing)


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore::DeprecationWarning:kfp")
@pytest.mark.filterwarnings("ignore::FutureWarning:kfp")
def test_both_steps_run_in_a_pipeline(small: Path, packed: Path, tmp_path: Path) -> None:  # noqa: F811
    from kfp import dsl, local

    from components.deployment.deploy.component import deploy
    from components.deployment.package.component import package

    @dsl.pipeline(name="only-deploy")
    def only_deploy() -> str:
        def given(path: Path, kind: Any) -> Any:
            return dsl.importer(artifact_uri=str(path), artifact_class=kind).output

        bundle, blessing = given(small / "bundle", dsl.Model), given(packed / "blessing", dsl.Artifact)
        store = given(packed / "store", dsl.Artifact)
        archive = package(bundle=bundle, blessing=blessing, code_version="test")
        return deploy(
            archive=archive.outputs["archive"],
            bundle=bundle,
            feature_store=store,
            blessing=blessing,
            target="local",
            state_dir=str(tmp_path / "state"),
            code_version="test",
        ).outputs["Output"]

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    task = only_deploy()
    champion = read_champion(tmp_path / "state")
    assert champion is not None
    assert task.output == str(champion.folder)
    assert champion.archive.read_bytes() == (packed / "archive" / "ctr.mar").read_bytes()
