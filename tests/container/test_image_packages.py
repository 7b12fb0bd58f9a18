"""Serving works with the packages of the image alone.

The image lacks what only training needs. A hidden import of one of those works on every developer's machine and breaks in
the pod, so here a process is denied every package of the lock that the image does not have.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.container.test_requirements import printed
from tests.serving import small

ROOT = Path(__file__).resolve().parents[2]

READ = """
import sys
from pathlib import Path

denied = set(sys.argv[2].split(","))

class Deny:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in denied:
            raise ModuleNotFoundError(f"No module named {name!r} (not in the predictor image)", name=name)

sys.meta_path.insert(0, Deny())
import serving.adapters.torchserve_handler
import serving.adapters.kserve_predictor
from serving.features.lookup import DirectReader, Lookup
from serving.features.feast_source import FeastSource, open_feast
from thinktwice.schema import load_schema

store = Path(sys.argv[1])
schema = load_schema(store / "schema.yaml")
reader = DirectReader(Lookup(FeastSource(*open_feast(store, sys.argv[3]), schema)))
features = reader.read("u1", ["i1", "i2", "nobody"])
print(features.user["gender"], features.items[0]["genre"], features.cold_items)
"""


@pytest.fixture(scope="module")
def denied() -> set[str]:
    """Top-level modules of the lock's packages that are not in the image."""

    def names(lines: list[str]) -> set[str]:
        return {line.split("==")[0] for line in lines}

    done = printed(ROOT / "requirements.lock")
    outside = names((ROOT / "requirements.lock").read_text().split()) - names(done.stdout.split())
    modules = {
        module
        for module, owners in packages_distributions().items()
        if all(owner.lower().replace("_", "-").replace(".", "-") in outside for owner in owners)
    }
    assert {"kfp", "ibis", "great_expectations", "boto3"} <= modules
    assert not {"torch", "feast", "ts", "kserve", "thinktwice", "serving"} & modules
    return modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_features_are_read_with_the_packages_of_the_image(denied: set[str], tmp_path: Path) -> None:
    from feature_repo.store import build

    clean = tmp_path / "clean"
    clean.mkdir()
    small.clean_log().write_parquet(clean / "clean.parquet")
    (clean / "schema.yaml").write_text(small.SCHEMA.to_yaml(), encoding="utf-8")
    info = build(clean, tmp_path / "store", feature_version="v1")
    command = [sys.executable, "-W", "ignore", "-c", READ, str(tmp_path / "store"), ",".join(sorted(denied))]
    done = subprocess.run([*command, info.feature_service], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "f g1 (False, False, True)"
