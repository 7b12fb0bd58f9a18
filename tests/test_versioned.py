"""Result files: what is written comes back, and anything else is refused by name, with what is wrong and the fix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate import samples
from thinktwice.data.splits import SplitSpec
from thinktwice.data.training_set_info import Conservation, PartInfo, TrainingSetInfo
from thinktwice.errors import DataError, PipelineError, ThinktwiceError
from thinktwice.files import parse_json
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.record import LossRecord, PretrainRecord
from thinktwice.release.blessing import Blessing, ComparedChampion
from thinktwice.stats.significance import Interval
from thinktwice.testtime.store import TestTimeFile
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.record import CandidateRecord, ChosenRecord, EvalRecord, FinetuneRecord, Reached, TrialRecord
from thinktwice.versioned import MeasuredInterval, ResultFile, checked_format, read_result

PART = PartInfo(rows=8, click_rate=0.5, window=("2026-01-01", "2026-01-02"), unseen_share={"user": 0.25})
POINT = EvalRecord(epoch=0.5, train_logloss=0.6, valid_logloss=0.7, valid_auc=None)
TRIED = CandidateRecord(table_l2=1e-3, augmentation="none")
CHANGE = MeasuredInterval.of(Interval(0.1, float("-inf"), float("inf")))
NO_EXTRA_WORK = samples.EXTRA_WORK.model_copy(
    update={
        "candidates": (),
        "references": (),
        "uplift": None,
        "off": samples.EXTRA_WORK.off.model_copy(update={"truth_distance": None}),
    }
)
RESULTS: dict[str, ResultFile] = {
    "training_set.json": TrainingSetInfo(
        format=TrainingSetInfo.FORMAT,
        schema_name="shop",
        split=SplitSpec(kind="random", seed=3),
        rows=10,
        parts={"train": PART, "valid": PART, "test": PART},
        conservation=Conservation(rows_in=10, rows_out=10, unique_row_ids=10),
    ),
    "blessing.json": Blessing(
        format=Blessing.FORMAT,
        blessed=True,
        reasons=("better",),
        bundle_hash="a" * 64,
        champion_hash="b" * 64,
        model_version="v1",
        rows=100,
        candidate={"auc": 0.6, "gauc": None},
        compared_rows=100,
        champion=ComparedChampion(bundle_hash="b" * 64, model_version="v0", metrics={"auc": 0.5}),
        changes={"auc": CHANGE},
    ),
    "evaluation.json": samples.EVALUATION,
    "evaluation.json without what exists in some runs": samples.EVALUATION.model_copy(
        update={"test_time": samples.NOTHING_TRIED, "extra_work": NO_EXTRA_WORK, "curves": {}}
    ),
    "test_time.json": TestTimeFile(
        format=TestTimeFile.FORMAT, config=samples.GATE, report=samples.REPORT, weights="a" * 64
    ),
    "finetuned/training.json": FinetuneRecord(
        format=FinetuneRecord.FORMAT,
        init="random",
        seed=1,
        torch="2",
        chosen=ChosenRecord(table_l2=1e-3, augmentation="none", epochs=2.0),
        trials=(TrialRecord(candidate=TRIED, best=POINT, chosen=True),),
        curve=(POINT,),
        valid=Reached(logloss=0.7, auc=None),
        config=FinetuneConfig(),
        rows={"train": 8, "valid": 1},
    ),
    "pretrained/training.json": PretrainRecord(
        format=PretrainRecord.FORMAT,
        seed=1,
        torch="2",
        curve=(LossRecord(epoch=1.0, label=0.5, fields={"user": 2.0}),),
        unigram_entropy={"user": 3.0},
        sampled_losses=("item",),
        config=PretrainConfig(),
        rows={"train": 8},
    ),
}


def refusal(path: Path, kind: type[ResultFile], content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_result(path, kind, DataError, "run the step again")
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (") and message.endswith("): run the step again")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    value = RESULTS[name]
    value.write(tmp_path / "file.json")
    assert read_result(tmp_path / "file.json", type(value), DataError, "") == value
    again = tmp_path / "again.json"
    read_result(tmp_path / "file.json", type(value), DataError, "").write(again)
    assert again.read_bytes() == (tmp_path / "file.json").read_bytes()


@pytest.mark.parametrize("name", RESULTS)
def test_every_missing_key_every_unknown_key_and_every_torn_file_is_named(name: str, tmp_path: Path) -> None:
    value, path = RESULTS[name], tmp_path / "file.json"
    value.write(path)
    whole = path.read_bytes()
    content: dict[str, Any] = parse_json(whole)
    for key, field in type(value).model_fields.items():
        if key != "format" and field.is_required():
            rest = {other: found for other, found in content.items() if other != key}
            assert f"{key}: Field required" in refusal(path, type(value), json.dumps(rest).encode())
    assert "surprise: Extra inputs" in refusal(path, type(value), json.dumps(content | {"surprise": 1}).encode())
    for end in range(0, len(whole) - 2, max(1, len(whole) // 25)):
        refusal(path, type(value), whole[:end])
    assert "it has no format number" in refusal(path, type(value), b"{}")
    refusal(path, type(value), b"[]")
    path.unlink()
    with pytest.raises(PipelineError, match=r"file.json cannot be read .*: run it"):
        read_result(path, type(value), PipelineError, "run it")


#: Keys that a file may lack at any depth: of runs that have them, and those that files of earlier versions lack or have.
OPTIONAL = {"truth_distance", "truth_excess_logloss", "truth_distance_change", "truth_logloss_change", "off", "pretrained", "logloss_change", "cost", "valid_auc"}  # fmt: skip
NAMED_BY_THE_LOG = {
    "valid",
    "test",
    "count_auc",
    "by_class",
    "click",
}  # by entity, field or class: any key is one of them
CONFIGS = {"config", "best", "split"}


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the objects of a file are; the first of each list, and nothing of configurations."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            if key not in CONFIGS:
                yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def at(content: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


@pytest.mark.parametrize("name", ["evaluation.json", "test_time.json"])
def test_keys_are_checked_at_every_depth(name: str, tmp_path: Path) -> None:
    value, path = RESULTS[name], tmp_path / "file.json"
    value.write(path)
    whole = path.read_bytes()
    found = list(places(parse_json(whole)))
    assert len(found) > 10
    for place in found:
        for key in at(parse_json(whole), place):
            content = parse_json(whole)
            del at(content, place)[key]
            if (not place and key in ("thought_twice", "findings")) or (
                key in OPTIONAL and at(parse_json(whole), place)[key] is not None
            ):
                continue  # the former is missing, or null, in files of earlier versions
            if place and (
                place[-1] in NAMED_BY_THE_LOG or place[-1] in ("controls", "columns", "slices", "curves", "parts")
            ):
                continue  # fewer entries are a whole file
            refusal(path, type(value), json.dumps(content).encode())
        if not place or place[-1] not in NAMED_BY_THE_LOG:
            content = parse_json(whole)
            at(content, place)["surprise"] = 1.5
            assert "surprise" in refusal(path, type(value), json.dumps(content).encode())


def test_what_does_not_exist_in_a_run_is_not_written(tmp_path: Path) -> None:
    RESULTS["evaluation.json without what exists in some runs"].write(tmp_path / "file.json")
    content = parse_json((tmp_path / "file.json").read_bytes())
    assert "off" not in content["test_time"] and "pretrained" not in content["test_time"]["trunks"]
    assert "truth_distance" not in content["extra_work"]["off"]
    assert (
        content["test_time"]["best"] is None and content["extra_work"]["uplift"] is None
    )  # that there is none is a finding


@given(version=st.integers() | st.none() | st.text(max_size=3) | st.booleans() | st.floats(allow_nan=False))
def test_any_other_format_is_refused_before_anything_else_is_read(version: object) -> None:
    kind = Blessing
    if version == kind.FORMAT and type(version) is int:
        return

    with pytest.raises(ValueError, match=r"this version reads 2|valid integer"):
        kind.model_validate(checked_format({"format": version, "other": 1}, kind.FORMAT))


def test_numbers_that_are_not_finite_become_none() -> None:
    assert MeasuredInterval(value=0.1, low=None, high=None, significant=False) == CHANGE
    assert issubclass(DataError, ThinktwiceError)
