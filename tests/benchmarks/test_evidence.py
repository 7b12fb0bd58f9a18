"""The study of evidence on a small log: every method is measured, finished units of work are not done again, and bars can fail."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import bars, data, measure, networks, page, plan, second_look, trunks
from benchmarks.evidence.data import DAYS, DELAYS, Log, in_user_parts
from benchmarks.evidence.kept import Kept
from benchmarks.evidence.measure import METHODS, Measured, Method
from benchmarks.evidence.networks import KINDS, networks_of
from benchmarks.evidence.plan import Job
from tests.selection import drifting
from thinktwice.data.splits import SplitSpec
from thinktwice.models import DeepFMConfig
from thinktwice.schema import parse_schema
from thinktwice.train.config import FinetuneConfig

SOON = "ten minutes"
SMALL = Log(
    "small",
    lambda folder: drifting.log(),
    parse_schema(drifting.PLAIN, where="test"),
    SplitSpec(kind="column", column=data.PART),
    (7, 0),
    ("topic",),
    ("city",),
    DeepFMConfig(dim=4, hidden=(16,)),
    FinetuneConfig(batch_size=256, table_l2=(3e-3,), augmentations=("none",), trial_epochs=2.0, epochs=2.0),
)
JOBS = [Job("small", kind, 0, SOON) for kind in KINDS] + [Job("small", "default"), Job("small", "trunk", 1)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all units of work of one seed and delay, and their result."""
    work = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.LOGS, "small", SMALL)
        for job in plan.ordered(JOBS):
            plan.do(job, work)
        found = command.collect(("small",), 1, work, quick=True)
    return work, found | {"quick": False, "seeds_asked": 2, "versions": {}, "machine": {"cores": 2, "system": "x"}}


def test_every_method_is_measured(done: tuple[Path, dict[str, Any]]) -> None:
    log = done[1]["logs"]["small"]
    rows = {m["method"]: m for m in log["methods"]}
    assert set(rows) == {measure.TWO, measure.DEFAULT, *METHODS.values()}
    assert all(rows[METHODS[kind]]["auc"]["low"] > 0 for kind in ("correction", "retrieval", "trees"))
    assert abs(rows[METHODS["other counters"]]["auc"]["value"]) < 0.01
    for row in rows.values():
        assert row["trained_seeds"] == 1 and row["auc"]["p"] <= row["auc"]["p_holm"] <= 1
    first, two = rows[METHODS["correction"]]["auc"], rows[measure.TWO]["auc"]
    assert log["beyond_trunks"][SOON]["value"] == pytest.approx(first["value"] - 5 * two["value"])
    over_default = first["value"] - rows[measure.DEFAULT]["auc"]["value"]
    assert log["over_default"][SOON]["auc"]["value"] == pytest.approx(over_default)
    times = done[1]["time"]["methods"]
    assert times["trunk"]["ratio"] == 1.0 and {"first look", "second look for 40% of rows"} < set(times)


def test_shares_of_the_second_look_add_up(done: tuple[Path, dict[str, Any]]) -> None:
    log = done[1]["logs"]["small"]
    table = log["second_look"][SOON]
    rows = {m["method"]: m["auc"]["value"] for m in log["methods"]}
    for unit in ("rows", "requests"):
        for trigger in ("random", "entropy", "moved", "oracle"):
            every = bars.share_of(table, unit, trigger, 1.0)
            assert every["kept"] == pytest.approx(1.0)
            assert every["over_first_look"]["value"] == pytest.approx(
                rows[METHODS["retrieval"]] - rows[METHODS["correction"]], abs=1e-4
            )
    assert bars.share_of(table, "rows", "oracle", 0.2)["kept"] > bars.share_of(table, "rows", "random", 0.2)["kept"]


def test_finished_units_are_not_done_again(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setitem(data.LOGS, "small", SMALL)
    for module, name in ((trunks, "finetune"), (trunks, "fit"), (trunks, "later_blocks"), (networks, "_trees")):
        monkeypatch.setattr(module, name, fails)
    for job in plan.ordered(JOBS):
        plan.do(job, done[0])
    with pytest.raises(AssertionError, match="trained again"):
        plan.do(Job("small", "trunk", 2), done[0])
    measured = Measured(networks_of("small", done[0]), 3)
    assert measured.seeds_of(Method(METHODS["correction"], SOON)) == [0] and measured.delays == [SOON]
    assert second_look.table(measured, "a day") is None


def test_other_code_or_settings_read_nothing_of_these(tmp_path: Path) -> None:
    first, other = Kept(tmp_path, "code 1"), Kept(tmp_path, "code 2")
    assert first.arrays("unit", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert first.arrays("unit", lambda: {})["a"].tolist() == [0, 1, 2]
    assert other.found("unit") is None and first.found("another unit") is None


@given(st.lists(st.text("ab.01 =", min_size=1, max_size=8), unique=True, max_size=4))
def test_units_of_any_name_are_kept_apart(names: list[str]) -> None:
    """Numbers have dots: what follows one is no suffix of a file."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder), "code")
        for number, name in enumerate(names):
            assert kept.found(name) is None
            kept.arrays(name, lambda number=number: {"a": np.array([number])})  # type: ignore[misc]
        assert [kept.found(name)["a"].tolist() for name in names] == [[n] for n in range(len(names))]  # type: ignore[index]


def test_a_unit_comes_after_what_it_needs() -> None:
    jobs = plan.jobs_of(("ml_time", "ml_random"), 2)
    order = plan.ordered(jobs)
    position = {job: number for number, job in enumerate(order)}
    assert len(position) == len(order) >= len(set(jobs))
    for job in order:
        assert all(position[needed] < position[job] for needed in job.needs())
    assert Job("ml_time", "data", 0, DAYS) in position and Job("ml_random", "trunk", 2) in position
    assert {j.delay for j in jobs if j.kind == "correction"} == set(DELAYS)


def test_a_figure_that_is_missed_or_missing_does_not_hold(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    result = done[1]
    found = bars.of(result)
    assert [b["value"] for b in found if b["name"].startswith("ml_time")] == [None] * 8
    assert not any(b["holds"] for b in found if b["value"] is None)
    good = bars.of(result | {"logs": {"ml_time": result["logs"]["small"]}})
    gain = next(b for b in good if b["name"].startswith("ml_time, labels known after ten minutes: AUC gain"))
    assert gain["holds"] and gain["value"] > 0.018 and gain["seeds"] == 1
    low = {"value": -0.001, "low": -0.002, "high": 0.0, "p": 0.5, "p_holm": 0.5, "seeds": [-0.001]}
    row = bars.row_of(result["logs"]["small"], METHODS["correction"], SOON)
    assert row is not None
    bad = {"methods": [row | {"auc": low}], "second_look": {}, "beyond_trunks": {SOON: low}, "over_default": {}}
    worse = bars.of(result | {"logs": {"ml_time": bad}})
    assert not any(b["holds"] for b in worse if "time of encode" not in b["name"])
    page.write(tmp_path, "evidence", result | {"bars": found})
    text = (tmp_path / "evidence.md").read_text()
    assert "not measured" in text and "MovieLens exaggerates freshness" in text and "Not every unit" in text
    for name in ("delays", "second-look"):
        assert (tmp_path / f"evidence-{name}.svg").read_text().startswith("<svg") and f"evidence-{name}.svg" in text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), min_size=1, max_size=80))
def test_in_user_the_latest_rows_of_every_user_are_test(rows: list[tuple[int, int]]) -> None:
    user, time = (np.array(column) for column in zip(*rows, strict=True))
    parts = in_user_parts(user, time)
    for of in np.unique(user):
        own, at = parts[user == of], time[user == of]
        assert own[at == at.max()].tolist() == [2] * int((at == at.max()).sum())
        order = np.argsort(at, kind="stable")
        assert (np.diff(own[order]) >= 0).all()
        assert all(len(set(own[at == t])) == 1 for t in at)  # an instant is in one part
        assert (own == 2).mean() >= 0.2 and (own > 0).mean() >= 0.3 - 1e-9


def test_requests_are_chosen_whole() -> None:
    signal, request = np.array([1.0, 4.0, 3.0, 2.0]), np.array([0, 0, 1, 1])
    assert second_look._chosen(signal, 0.5, None).tolist() == [False, True, True, False]
    assert second_look._chosen(signal, 0.5, request).tolist() == [True, True, False, False]
    assert second_look._chosen(signal, 0.25, request).sum() == 0
    assert second_look._chosen(signal, 1.0, request).all()
