"""The evaluation of a run: numbers that agree with the rows, and a page that opens anywhere."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from tests.progress_events import assert_complete, pieces
from tests.selection.prices import exactly
from tests.testtime.world import with_report
from thinktwice.data.training_set import load_training_set
from thinktwice.errors import BundleError
from thinktwice.evaluate import slices
from thinktwice.evaluate.bundles import evaluate_bundles
from thinktwice.evaluate.compare import compare, evaluate
from thinktwice.evaluate.evaluation import Evaluation, TrainingEvaluation, read_evaluation
from thinktwice.evaluate.findings.logistic import PRIORS
from thinktwice.evaluate.package import write_candidate
from thinktwice.evaluate.report import render
from thinktwice.evaluate.table import print_metrics
from thinktwice.files import read_json
from thinktwice.models import load_model
from thinktwice.models.blocks import one_thread
from thinktwice.pages.charts import nice_ticks
from thinktwice.release.bundle import bundle_hash, load_bundle
from thinktwice.selection.trunks import open_trunks
from thinktwice.stats import metrics
from thinktwice.testtime.cost import COST_FILE, load_costs
from thinktwice.testtime.store import load_test_time, read_report
from thinktwice.versioned import read_result


@pytest.fixture(scope="module")
def content(finished: Path) -> TrainingEvaluation:
    return read_evaluation(finished / "evaluation-good" / "evaluation.json")


def test_three_columns_on_the_same_rows(finished: Path, content: TrainingEvaluation) -> None:
    test = load_training_set(finished / "set").part("test")
    assert [c.key for c in content.columns] == ["plain", "pretrained", "test_time"]
    assert content.rows == len(test)
    model, info = load_model(finished / "plain")
    with one_thread():
        logit = info.calibration.a * model(test.batch(slice(None))).detach().double().numpy() + info.calibration.b
    found = content.columns[0].metrics
    assert found.auc == pytest.approx(metrics.auc(test.label, logit), abs=1e-6)
    assert found.logloss == pytest.approx(metrics.logloss(test.label, logit), abs=1e-6)
    assert found.truth_distance > 0
    assert content.columns[2].cost.passes >= 1


def test_every_difference_is_paired_and_agrees_with_the_columns(content: TrainingEvaluation) -> None:
    by_key = {c.key: c.metrics for c in content.columns}
    assert len(content.differences) == 12  # three pairs, four metrics
    for d in content.differences:
        assert d.value == pytest.approx(by_key[d.column].of(d.metric) - by_key[d.against].of(d.metric), abs=1e-9)
        if d.metric != "ece":  # the bootstrap of a distance from zero is biased upwards
            assert d.low <= d.value <= d.high
        assert d.significant == (d.low > 0 or d.high < 0)


def test_what_ships_was_chosen_on_validation(content: TrainingEvaluation) -> None:
    assert content.trunk == "plain"
    assert content.shipped == "plain"
    assert content.mode == "off"
    assert "ships off" in content.test_time.sentence
    assert content.verdict[0].startswith("The plain model ships, without test-time work")
    assert any(line.startswith("Pre-training changed AUC by -") and "(worse)" in line for line in content.verdict)


def test_slices_cover_cold_start_and_support(content: TrainingEvaluation) -> None:
    names = {s.name: s for s in content.slices}
    assert set(names) == {"cold user", "seen user and item"}  # every item was seen
    assert sum(s.rows for s in names.values()) == content.rows
    assert sum(d.rows for d in content.deciles) == content.rows
    assert len(content.deciles) >= 5
    for found in (*content.slices, *content.deciles):
        assert set(found.columns) == {"plain", "pretrained", "test_time"}
        assert found.columns["plain"].logloss_change is None


def test_scenarios(finished: Path, tmp_path: Path) -> None:
    """The field that the schema names, in evaluation, table and page; a log without one has none."""
    data = load_training_set(finished / "set")
    rows = data.rows("test")
    assert slices.scenarios(data.schema, rows) == {}
    named = data.schema.model_copy(update={"scenario": "site"})
    found = slices.scenarios(named, rows)
    counts = rows["site"].value_counts(sort=True)
    largest = counts.sort(["count", "site"], descending=[True, False])["site"][: slices.MAX_SCENARIOS]
    assert list(found) == [*(s for s in (f"site {v}" for v in largest) if s in found), "site, other"]
    assert sum(mask.astype(int) for mask in found.values()).tolist() == [1] * rows.height
    assert all(mask.sum() >= slices.MIN_ROWS for mask in found.values())
    device = slices.scenarios(data.schema.model_copy(update={"scenario": "device"}), rows)
    assert sorted(device) == ["device d0", "device d1", "device d2"]
    holes = rows.with_columns(pl.when(pl.col("device") != "d0").then("device").alias("device"))
    device = slices.scenarios(data.schema.model_copy(update={"scenario": "device"}), holes)
    assert list(device)[-1] == "device, other"
    assert (device["device, other"] == holes["device"].is_null().to_numpy()).all()
    alone = slices.scenarios(
        named.model_copy(update={"scenario": "device"}), rows.with_columns(pl.lit("x").alias("device"))
    )
    assert alone == {}


def test_scenarios_reach_the_report(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "set", tmp_path / "set")
    named = load_training_set(finished / "set").schema.model_copy(update={"scenario": "device"})
    (tmp_path / "set" / "schema.yaml").write_text(named.to_yaml(), encoding="utf-8")
    content = evaluate_bundles(finished / "bundle-good", tmp_path / "set", finished / "bundle-bad", tmp_path / "out")
    assert {s.name for s in content.scenarios} == {"device d0", "device d1", "device d2"}
    assert sum(s.rows for s in content.scenarios) == content.rows
    assert read_result(tmp_path / "out" / "evaluation.json", Evaluation, BundleError, "") == content
    console = Console(width=120, record=True, file=StringIO())
    print_metrics(console, content)
    assert "device d1 (3" in console.export_text()
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Scenarios</h2>" in text and "device d2" in text
    page = Page()
    page.feed(text)
    assert page.open == []


def test_operating_point(content: TrainingEvaluation) -> None:
    point = content.operating_point
    assert np.sum(point.confusion) == content.rows
    assert 2 < len(point.roc) <= 200
    assert 0 < point.threshold < 1


def test_json_holds_finite_numbers_only(finished: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (finished / "evaluation-good" / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse)["columns"]


class Page(HTMLParser):
    """Every tag must be closed, and nothing may be loaded from elsewhere."""

    void = frozenset(("meta", "circle", "line", "polyline", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        for name, value in attrs:
            assert name not in ("src", "href"), (tag, value)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["good", "bad"])
def test_report_is_one_self_contained_page(finished: Path, name: str) -> None:
    text = (finished / f"evaluation-{name}" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.seen["svg"] >= 3
    assert "script" not in page.seen
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan[a-z]*", "", text.lower())
    content = read_evaluation(finished / f"evaluation-{name}" / "evaluation.json")
    for column in content.columns:
        assert f"{column.metrics.auc:.4f}" in text
    assert content.verdict[0] in text
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "")


def test_without_a_pretrained_model_there_are_two_columns(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINKTWICE_PROGRESS", str(tmp_path / "events"))
    monkeypatch.setattr("thinktwice.progress.MIN_INTERVAL", 0.0)
    monkeypatch.setattr("thinktwice.train.beside.may_train_beside", lambda num_bytes: False)  # as on one core
    found = evaluate(finished / "set", finished / "plain", None, finished / "test_time-good", tmp_path / "out")
    assert [c.key for c in found.content.columns] == ["plain", "test_time"]
    # Every long piece of the work reports how much of it is done, from which a watcher tells the time left.
    reported = pieces(tmp_path / "events", "evaluate")
    assert list(reported) == ["test rows", "logistic regression", "field importance", "candidates", "controls"]
    assert reported.pop("logistic regression")[0][1] == len(PRIORS)  # it ends when validation says so
    for reports in reported.values():
        assert_complete(reports)
    assert found.content.findings is not None
    importance = found.content.findings.importance
    several = [g for g in importance.groups if sum(f.group == g.group for f in importance.fields) > 1]
    exchanges = len(importance.fields) + len(several)
    assert reported["field importance"][-1][1] == 1 + importance.repeats * exchanges
    assert reported["candidates"][-1][1] == len(found.content.extra_work.candidates)


def test_the_model_that_validation_chose_must_be_given(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "test_time"
    shutil.copytree(finished / "test_time-good", folder)
    with_report(folder, trunk="pretrained")
    with pytest.raises(BundleError, match="belong to the pretrained model"):
        evaluate(finished / "set", finished / "plain", None, folder, tmp_path / "out")


def test_bundle_gives_the_numbers_of_its_evaluation(
    finished: Path, content: TrainingEvaluation, tmp_path: Path
) -> None:
    found = evaluate_bundles(finished / "bundle-good", finished / "set", finished / "bundle-bad", tmp_path / "out")
    assert [c.key for c in found.columns] == ["against", "bundle"]
    shipped = next(c for c in content.columns if c.key == content.shipped)
    assert found.columns[1].metrics == shipped.metrics
    page = Page()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    alone = evaluate_bundles(finished / "bundle-good", finished / "set")
    assert alone.differences == ()


def test_ticks_are_round_and_cover_the_range() -> None:
    for low, high in ((0.0, 1.0), (0.7312, 0.7398), (-3e-4, 5e-4), (5.0, 5.0), (0.0, 0.0), (17, 90_000)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 9


def test_measured_times_change_one_file_of_a_bundle(finished: Path, tmp_path: Path) -> None:
    """However long the scoring took: all files but the costs are the same."""
    hashes, files = set(), []
    for name, ratio in (("a", 1.25), ("b", 3.5)):
        folder = tmp_path / f"test_time-{name}"
        shutil.copytree(finished / "test_time-good", folder)
        costs = load_costs(folder)
        assert costs is not None
        measured = {candidate: exactly(ratio) for candidate in costs.candidates}
        costs.model_copy(update={"candidates": measured}).write(folder / COST_FILE)
        found = evaluate(finished / "set", finished / "plain", finished / "bad", folder, tmp_path / name)
        assert found.timings == {"plain": 1.0, "pretrained": 1.0, "test_time": ratio}
        written = read_json(tmp_path / name / "timings.json")
        assert written == {"time_ratio": found.timings, "candidates": found.candidate_timings}
        assert set(found.candidate_timings.values()) == {ratio}
        assert f"{ratio:.2f}× time" in render(found.content, found.timings)
        write_candidate(
            tmp_path / f"bundle-{name}",
            evaluation=found,
            evaluation_dir=tmp_path / name,
            training_set_dir=finished / "set",
            model_dirs={"plain": finished / "plain", "pretrained": finished / "bad"},
            test_time_dir=folder,
            snapshot_id="0" * 16,
            model_version="world-twice",
            feature_version="world-twice",
            package_version="0.1.0",
        )
        hashes.add(bundle_hash(tmp_path / f"bundle-{name}"))
        files.append(load_bundle(tmp_path / f"bundle-{name}").manifest.files)
    assert len(hashes) == 2 and files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == [COST_FILE]


def test_only_one_of_several_accepted_candidates_ships(content: TrainingEvaluation) -> None:
    proved = {"accepted": True, "reasons": ()}
    candidates = tuple(
        c.model_copy(update={"validation": c.validation.model_copy(update=proved), "ships": index == 0})
        for index, c in enumerate(content.extra_work.candidates)
    )
    assert len(candidates) > 1
    work = content.extra_work.model_copy(update={"candidates": candidates})
    page = render(content.model_copy(update={"extra_work": work}))
    assert page.count('<span class="good">ships</span>') == 1
    assert page.count("proved a gain, but another fits the earlier half better") == len(candidates) - 1


def test_an_accepted_candidate_is_what_ships(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "test_time"
    shutil.copytree(finished / "test_time-good", folder)
    best = read_report(folder).best
    report = with_report(folder, best, accepted=True, mode=best.mode)
    found = evaluate(finished / "set", finished / "plain", finished / "bad", folder, tmp_path / "evaluation")
    assert found.content.shipped == "test_time"
    assert found.content.verdict[0].startswith(f"The plain + {report.best_name} model ships: on ")
    write_candidate(
        tmp_path / "bundle",
        evaluation=found,
        evaluation_dir=tmp_path / "evaluation",
        training_set_dir=finished / "set",
        model_dirs={"plain": finished / "plain", "pretrained": finished / "bad"},
        test_time_dir=folder,
        snapshot_id="0" * 16,
        model_version="world-on",
        feature_version="world-on",
        package_version="0.1.0",
    )
    content = evaluate_bundles(tmp_path / "bundle", finished / "set")
    assert content.mode == best.mode
    assert content.columns[0].metrics == found.content.column("test_time").metrics
    assert content.columns[0].cost.passes == found.content.columns[2].cost.passes


def test_opened_once_they_give_the_same_evaluation_and_nothing_is_written(
    finished: Path, content: TrainingEvaluation
) -> None:
    data, trunks = load_training_set(finished / "set"), open_trunks(finished / "plain", finished / "bad")
    test_time = load_test_time(finished / "test_time-good", trunks["plain"].model)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert compare(data, trunks, test_time).content == content
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    with pytest.raises(BundleError, match="have no report of how they were chosen: fit them again"):
        compare(data, trunks, replace(test_time, report=None))
