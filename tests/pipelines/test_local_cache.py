"""The local cache hands out only what is still whole."""

from pathlib import Path

import pytest
from kfp import dsl

from pipelines.local_cache import CheckedCache, tree_digest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def outputs(tmp_path: Path) -> dict:
    folder = tmp_path / "out" / "model"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("123")
    return {
        "model": dsl.Model(name="model", uri=str(folder), metadata={}),
        "metrics": dsl.Metrics(name="metrics", uri=str(tmp_path / "out" / "metrics"), metadata={"auc": 0.5}),
        "Output": True,
    }


@pytest.fixture
def cache(tmp_path: Path) -> CheckedCache:
    return CheckedCache(str(tmp_path / "cache"))


def test_a_whole_output_comes_back_with_metadata_and_notes(cache: CheckedCache, outputs: dict):
    cache.task, cache.said = "finetune", [["note", "AUC 0.5"]]
    cache.put("k", outputs)
    cache.said = []
    found = cache.get("k")
    assert found is not None
    assert found["model"].uri == outputs["model"].uri
    assert found["metrics"].metadata == {"auc": 0.5}
    assert found["Output"] is True
    assert cache.said == [["note", "AUC 0.5"]] and cache.hits == {"finetune"}


@pytest.mark.parametrize("damage", ["file removed", "file cut", "file added", "folder removed"])
def test_a_damaged_output_is_computed_again(cache: CheckedCache, outputs: dict, damage: str):
    cache.put("k", outputs)
    folder = Path(outputs["model"].uri)
    if damage == "file removed" or damage == "folder removed":
        (folder / "weights").unlink()
    elif damage == "file cut":
        (folder / "weights").write_text("12")
    else:
        (folder / "half-written.part").write_text("")
    if damage == "folder removed":
        folder.rmdir()
    assert cache.get("k") is None
    assert not cache.hits


def test_an_unknown_key_is_a_miss(cache: CheckedCache):
    assert cache.get("nothing") is None


def test_tree_digest_tells_names_and_sizes_apart(tmp_path: Path):
    (tmp_path / "a").mkdir()
    empty = tree_digest(tmp_path / "a")
    (tmp_path / "a" / "x").write_text("1")
    one = tree_digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert len({empty, one, tree_digest(tmp_path / "a"), tree_digest(tmp_path / "none")}) == 4
