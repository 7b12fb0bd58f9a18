"""A bundle as the start of a training: one of another schema is refused by what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.features.build_training_set.start import opened_start
from pipelines.arguments import RunArguments
from pipelines.check import check_arguments, check_for_cluster
from tests.pipelines.own_log import write_log
from tests.serving.small import SCHEMA
from thinktwice.data.warm_start import Start
from thinktwice.errors import BundleError, DataError, PipelineError
from thinktwice.release.bundle import bundle_hash
from thinktwice.release.warm_start import FILES, bundle_version, start_of
from thinktwice.schema import parse_schema

TEXT = SCHEMA.to_yaml()


def test_a_bundle_of_the_same_schema_is_a_start(small: Path, tmp_path: Path) -> None:
    folder = small / "bundle"
    start = start_of(folder, SCHEMA, bundle_hash(folder))
    assert start == Start(folder, FILES) and bundle_version(str(folder)) == bundle_hash(folder)
    start.copy(tmp_path / "start")
    assert {path.name for path in (tmp_path / "start").iterdir()} == set(FILES)
    with opened_start(str(folder), SCHEMA, "") as opened:
        assert opened == start
    with opened_start("", SCHEMA, "") as opened:
        assert opened is None


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("name: small", "name: large", r"its name is 'small' and not 'large'"),
        ("name: gender", "name: sex", r"field 'sex' has another name"),
        ("name: bid\n  kind: numeric", "name: bid\n  kind: categorical", r"field 'bid' has another kind"),
        ("length: 5", "length: 6", r"field 'history' has another length"),
        ("key: user_id", "key: member_id", r"field 'member_id' has another name"),
        ("windows_days:\n  - 0", "windows_days:\n  - 7", r"another name"),
        ("time:", "label:\n  threshold: 4.0\ntime:", r"'label' differs"),
        ("name: slot", "name: slot\n- name: place", r"field .* has another name"),
    ],
)
def test_another_schema_is_refused_by_what_differs(before: str, after: str, words: str, small: Path) -> None:
    changed = TEXT.replace(before, after, 1)
    assert changed != TEXT, TEXT
    with pytest.raises(
        DataError, match=rf"is of another schema than the log \(.*{words}.*\): train from scratch"
    ) as caught:
        start_of(small / "bundle", parse_schema(changed, where="test"))
    assert len(str(caught.value).splitlines()) == 1


def test_limits_of_vocabularies_and_rules_of_validation_may_change(small: Path) -> None:
    changed = TEXT.replace("name: gender", "name: gender\n  min_count: 3\n  max_values: 9\n  allowed: [f, m]", 1)
    assert changed != TEXT and start_of(small / "bundle", parse_schema(changed, where="test")).files == FILES


def test_another_bundle_than_that_of_the_run_and_a_damaged_one_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"is now [0-9a-f]{12} and was 000000000000 when the run began: start the run again"
    ):
        start_of(small / "bundle", SCHEMA, "0" * 64)
    shutil.copytree(small / "bundle", tmp_path / "bundle")
    with (tmp_path / "bundle" / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        start_of(tmp_path / "bundle", SCHEMA)
    with pytest.raises(BundleError, match="is not a bundle"):
        start_of(tmp_path, SCHEMA)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": "dcnv2"}, r"\(deepfm and not dcnv2\)"),
        ({}, r"\(dim is 4 and not 16\)"),
        ({"recipe": json.dumps({"model": {"dim": 4, "hidden": [8]}})}, ""),
        ({"schema": "log"}, r"its name is 'small' and not 'shop'"),
    ],
)
def test_a_run_is_refused_before_it_reads_the_log(
    change: dict[str, str], words: str, small: Path, tmp_path: Path
) -> None:
    log, schema = write_log(tmp_path, rows=20)
    if change.pop("schema", "") != "log":
        schema.write_text(TEXT, encoding="utf-8")
    arguments = RunArguments(
        source="parquet", source_path=str(log), schema_path=str(schema), continue_from=str(small / "bundle"), **change
    )
    if not words:
        check_arguments(arguments)
        return
    with pytest.raises(DataError, match=words):
        check_arguments(arguments)


def test_a_run_in_a_cluster_needs_a_bundle_that_its_steps_see(small: Path) -> None:
    arguments = RunArguments(source="sim", continue_from=str(small / "bundle"))
    with pytest.raises(PipelineError, match=r"--continue-from .* is on this machine"):
        check_for_cluster(arguments, "gpu-single")
