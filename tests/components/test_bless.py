"""The step ``bless`` as a function."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from kfp.dsl import Artifact, Dataset, Metrics, Model

from components.evaluation.bless.component import bless
from tests.serving.releases import pack
from tests.testtime import world
from thinktwice.errors import BundleError, PipelineError
from thinktwice.release.blessing import require_blessing
from thinktwice.release.champion import install_champion

COMPONENT = Path(__file__).resolve().parents[2] / "components/evaluation/bless"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.finished_run(tmp_path_factory.mktemp("finished"))


def test_verdict_against_the_champion_in_the_state_folder(finished: Path, tmp_path: Path) -> None:
    def judge(name: str) -> tuple[bool, Artifact, Metrics]:
        blessing = Artifact(name="blessing", uri=str(tmp_path / f"blessing-{name}"), metadata={})
        metrics = Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
        inputs = (Dataset(uri=str(finished / "set")), Model(uri=str(finished / f"bundle-{name}")))
        return bless.python_func(*inputs, str(tmp_path / "state"), "0.1.0", blessing, metrics), blessing, metrics

    blessed, artifact, metrics = judge("good")
    assert blessed is True
    assert "there is no champion yet" in artifact.metadata["reasons"]
    assert metrics.metadata == {"blessed": 1.0}
    assert require_blessing(artifact.path, finished / "bundle-good").blessed

    (tmp_path / "store").mkdir()
    champion = install_champion(
        tmp_path / "state",
        bundle_dir=finished / "bundle-good",
        archive=pack(finished / "bundle-good", tmp_path / "packed"),
        feature_store_dir=tmp_path / "store",
    )
    blessed, artifact, metrics = judge("bad")
    assert blessed is False
    assert metrics.metadata["blessed"] == 0.0
    assert metrics.metadata["auc_change_against_champion"] < 0
    with pytest.raises(PipelineError, match="not blessed"):
        require_blessing(artifact.path, finished / "bundle-bad")

    # A damaged champion is no first run: anything would then be blessed over it.
    shutil.rmtree(champion.bundle_dir)
    with pytest.raises(BundleError, match=r"bundle is not a bundle"):
        judge("good")
    shutil.rmtree(champion.folder)
    assert (tmp_path / "state" / "champion").is_symlink()
    with pytest.raises(BundleError, match=re.escape(f"champion {tmp_path / 'state' / 'champion'} cannot be read")):
        judge("good")


def test_the_interface_is_described() -> None:
    described = yaml.safe_load((COMPONENT / "metadata.yaml").read_text())
    assert set(described["inputs"]) == set(bless.component_spec.inputs)
    assert set(described["outputs"]) == set(bless.component_spec.outputs)
