"""Test-time parameters on disk: whole, shared where they were shared, mapped instead of read, and refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.evaluate.samples import REPORT
from tests.memory_maps import is_mapped
from tests.testtime import wide
from tests.testtime.wide import but
from thinktwice.combinations.counts import COMBINATIONS_FILE
from thinktwice.errors import BundleError
from thinktwice.models import build_backbone
from thinktwice.models.store import MODEL_FILE, WEIGHTS_FILE
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.evidence.correction import CORRECTION_FILE
from thinktwice.testtime.evidence.retrieval import NEIGHBOURS_FILE, RETRIEVAL_FILE
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.heads import HEADS_FILE
from thinktwice.testtime.modes import PRESETS
from thinktwice.testtime.reliability import COUNTS_FILE
from thinktwice.testtime.store import (
    TEST_TIME_FILE,
    TestTime,
    load_test_time,
    needed_files,
    read_config,
    read_report,
    save_test_time,
)

CONFIG = wide.MODES["uttsi, pair support"]


@pytest.fixture
def saved(big: wide.Wide, tmp_path: Path) -> Path:
    """A member of the model's table, then one of its own, and all other extras."""
    extras = Extras(big.extras.combinations, big.extras.heads, (big.sharer, big.extras.members[0]))
    save_test_time(tmp_path, TestTime(CONFIG, big.reliability, REPORT, extras, "abc"), big.model)
    return tmp_path


def test_everything_comes_back(big: wide.Wide, saved: Path) -> None:
    found = load_test_time(saved, big.model)
    assert (found.config, found.report, found.weights) == (CONFIG, REPORT, "abc")
    assert read_config(saved) == CONFIG
    ids = big.later.ids
    assert np.array_equal(found.reliability.of(ids), big.reliability.of(ids))
    extras, before = found.extras, big.extras
    assert extras.combinations is not None and before.combinations is not None
    assert np.array_equal(extras.combinations.reliability(ids), before.combinations.reliability(ids))
    assert extras.heads is not None and before.heads is not None
    assert torch.equal(extras.heads.weight, before.heads.weight)
    batch = big.batch(slice(0, 50))
    assert len(extras.members) == 2
    for member, original in zip(extras.members, (big.sharer, before.members[0]), strict=True):
        assert torch.equal(member(batch), original(batch))
        assert not member.training


def test_a_shared_table_is_one_object_again_and_lies_on_disk_once(big: wide.Wide, saved: Path) -> None:
    found = load_test_time(saved, big.model).extras.members
    assert found[0].embedding.table is big.model.embedding.table
    assert found[1].embedding.table is not big.model.embedding.table
    names = []
    for place in (0, 1):
        with safe_open(str(saved / f"members/{place}" / WEIGHTS_FILE), framework="numpy") as handle:
            names.append(set(handle.keys()))
    assert names[1] - names[0] == {"table"}
    with pytest.raises(BundleError, match=r"members/0/weights.safetensors lacks 'table'"):
        load_test_time(saved)  # nobody lends a table


def test_a_table_of_another_size_is_not_lent(big: wide.Wide, saved: Path) -> None:
    other = build_backbone(wide.SIZE.model_copy(update={"dim": 5}), wide.FIELDS)
    with pytest.raises(BundleError, match=r"needs a table of \(\d+, 7\), not \(\d+, 6\)"):
        load_test_time(saved, other)


def test_counts_are_mapped_and_nobody_can_write_them(saved: Path, big: wide.Wide) -> None:
    found = load_test_time(saved, big.model).reliability
    assert is_mapped(found.counts, saved / COUNTS_FILE)
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0] = 1
    assert np.array_equal(found.shuffled(3).counts, big.reliability.shuffled(3).counts)


def test_without_extras_there_are_no_further_files(big: wide.Wide, tmp_path: Path) -> None:
    save_test_time(tmp_path, TestTime(TestTimeConfig(), big.reliability, None))
    assert {p.name for p in tmp_path.rglob("*")} == {TEST_TIME_FILE, COUNTS_FILE}
    found = load_test_time(tmp_path)
    assert found.extras == Extras() and found.weights == ""


def test_more_members_than_there_is_room_for_are_refused(big: wide.Wide, tmp_path: Path) -> None:
    extras = Extras(members=(big.sharer,) * 3)
    with pytest.raises(BundleError, match="3 further trunks cannot be written: a bundle contains at most 2"):
        save_test_time(tmp_path, TestTime(TestTimeConfig(), big.reliability, None, extras), big.model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "files"),
    [
        *((PRESETS[mode], set()) for mode in ("off", "calibrated", "gate", "filter")),
        (wide.UTTSI, set()),
        (PRESETS["uttsi"], {COMBINATIONS_FILE}),
        (PRESETS["matt"], {COMBINATIONS_FILE}),
        (PRESETS["sgctr"], {HEADS_FILE}),
        (PRESETS["corrected"], {CORRECTION_FILE}),
        (PRESETS["retrieve"], {CORRECTION_FILE, RETRIEVAL_FILE, NEIGHBOURS_FILE}),
        (PRESETS["members"], {f"members/0/{n}" for n in (MODEL_FILE, WEIGHTS_FILE)}),
        (but(wide.MEMBERS, count=2), {f"members/{p}/{n}" for p in (0, 1) for n in (MODEL_FILE, WEIGHTS_FILE)}),
    ],
)
def test_files_that_a_configuration_needs(config: TestTimeConfig, files: set[str]) -> None:
    assert set(needed_files(config)) == {TEST_TIME_FILE, COUNTS_FILE} | files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (TEST_TIME_FILE, b"{", "cannot be read .*: fit the test-time parameters again"),
        (TEST_TIME_FILE, b"[]", "cannot be read .*: fit the test-time parameters again"),
        (TEST_TIME_FILE, b'{"format": 1}', "has format 1, this version reads 3 and 2: fit it again"),
        (TEST_TIME_FILE, b'{"format": 4, "config": {}}', "has format 4, this version reads 3 and 2: fit it again"),
        (TEST_TIME_FILE, b'{"format": 2, "config": {"mode": "fast"}}', "cannot be read"),
        (TEST_TIME_FILE, b'{"format": 2, "config": {}, "report": {}}', "cannot be read .weights: Field required"),
        (TEST_TIME_FILE, b'{"format": 3, "config": {"mode": "fast"}}', "cannot be read"),
        (TEST_TIME_FILE, b'{"format": 3, "config": {}, "report": {}}', "cannot be read .weights: Field required"),
        (COUNTS_FILE, b"no counts", "counts.safetensors cannot be read .*: fit the test-time parameters again"),
        (COMBINATIONS_FILE, b"no counts", "combinations.safetensors cannot be read"),
        (HEADS_FILE, b"no heads", "heads.safetensors cannot be read"),
        (f"members/1/{WEIGHTS_FILE}", b"no weights", "members/1/weights.safetensors cannot be read"),
        (f"members/0/{MODEL_FILE}", b"{}", "members/0/model.json cannot be read"),
    ],
)
def test_damage_is_named(name: str, content: bytes, words: str, big: wide.Wide, saved: Path) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(BundleError, match=words):
        load_test_time(saved, big.model)


def test_truncated_counts_are_named(big: wide.Wide, saved: Path) -> None:
    for name in (COUNTS_FILE, COMBINATIONS_FILE):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BundleError, match=name):
            load_test_time(saved, big.model)
        (saved / name).write_bytes(whole)


def test_a_configuration_from_a_file_is_checked_like_any(saved: Path) -> None:
    content = json.loads((saved / TEST_TIME_FILE).read_text())
    content["config"]["second_look"]["opinion"]["count"] = 1
    (saved / TEST_TIME_FILE).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"second_look.opinion.feature_paths.count: Extra inputs"):
        read_config(saved)


def test_parameters_that_were_set_and_not_chosen_have_no_report(big: wide.Wide, tmp_path: Path) -> None:
    save_test_time(tmp_path, TestTime(CONFIG, big.reliability, None))
    assert read_config(tmp_path) == CONFIG
    with pytest.raises(
        BundleError, match=r"test_time\.json has no report of how .*: fit the test-time parameters again"
    ):
        read_report(tmp_path)
    save_test_time(tmp_path, TestTime(CONFIG, big.reliability, REPORT))
    assert read_report(tmp_path) == REPORT
