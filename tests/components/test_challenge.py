"""The step ``challenge``: a mode that the acceptance test refused is packaged beside the champion, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kfp.dsl import Artifact

from components.deployment.challenge.challenger import make_challenger
from components.deployment.challenge.component import challenge
from tests.components.deployed import make_store
from tests.serving.small import make_bundle
from tests.testtime import world
from thinktwice.errors import PipelineError
from thinktwice.files import read_json
from thinktwice.hashing import FileEntry
from thinktwice.release.bundle import load_bundle
from thinktwice.release.challenger import version_named, versions
from thinktwice.release.champion import read_champion

COMPONENT = Path(__file__).resolve().parents[2] / "components" / "deployment" / "challenge"


class Sink:
    """An output of a step whose content does not matter here."""

    def __init__(self, path: Path) -> None:
        self.path: str = str(path)
        self.metadata: dict[str, object] = {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set, a model of it, and a store. The identity is that of another bundle: only its names are taken."""
    folder = tmp_path_factory.mktemp("run")
    world.one_thread()
    world.train_model(world.make_training_set(folder / "set", rows=2000), folder / "plain")
    make_bundle(folder / "named")
    make_store(folder / "store")
    (folder / "store" / "registry.db").write_bytes(b"a registry")
    return folder


def test_a_mode_is_packaged_whether_or_not_it_is_accepted(run: Path, tmp_path: Path) -> None:
    output = Sink(tmp_path / "challenger.json")
    inputs = [Artifact(uri=str(run / name)) for name in ("set", "plain", "plain", "named/bundle", "store")]
    challenge.python_func(*inputs, Artifact(uri=""), "tiny", "uttsi", str(tmp_path / "state"), "0.1.0", output)
    assert read_champion(tmp_path / "state") is None  # nothing was deployed
    (version,) = versions(tmp_path / "state")
    info = version.challenger
    assert info is not None and info.mode == "uttsi" and output.metadata["bundle_hash"] == info.bundle_hash
    assert read_json(output.path)["bundle_hash"] == version.bundle_hash
    assert info.why.startswith("Test-time work ships " + ("on" if info.accepted else "off"))
    loaded = load_bundle(version.bundle_dir)
    assert loaded.engine.config.mode == "uttsi"
    base = load_bundle(run / "named" / "bundle").manifest
    assert loaded.manifest.model_version == f"{base.model_version}-uttsi"
    assert loaded.manifest.files["weights.safetensors"] == FileEntry.of(run / "plain" / "weights.safetensors")
    assert version_named(tmp_path / "state", f"{base.model_version}-uttsi") == version


def test_a_mode_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    folders = {f"{name}_dir": run / where for name, where in (("bundle", "named/bundle"), ("training_set", "set"))}
    folders |= {"plain_dir": run / "plain", "pretrained_dir": run / "plain", "feature_store_dir": run / "store"}
    for mode, words in (("off", "cannot be 'off'"), ("lean", "cannot be 'lean'"), ("thrice", "is unknown")):
        with pytest.raises(PipelineError, match=words):
            make_challenger(tmp_path / "state", mode=mode, recipe="tiny", **folders)
    assert not (tmp_path / "state").exists()


def test_the_description_names_inputs_and_outputs() -> None:
    described = yaml.safe_load((COMPONENT / "metadata.yaml").read_text())
    assert set(described["inputs"]) == set(challenge.component_spec.inputs)
    assert set(described["outputs"]) == set(challenge.component_spec.outputs)
