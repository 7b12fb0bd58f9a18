"""The HTML report: everything of the report is on the page, nothing of it is code, and it opens offline."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from tests.experiment.evidence import evidence
from tests.experiment.files import experiment
from thinktwice.experiment.record import append_decision, read_record
from thinktwice.experiment.report import ExperimentReport, report_of
from thinktwice.experiment.report_page import KnownEffect, PageExtras, _readable, render_report

FILE = experiment(
    coverage=0.5,
    horizon={"days": 14, "looks": 14},
    minimum={"days": 3, "units": 500},
    guardrails=[{"metric": "latency_p99", "worse": "increase", "margin": 0.2, "relative": True}],
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExperimentReport:
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    for day in (1, 3, 5, 7):
        append_decision(path, FILE, evidence(FILE, day, t1={"lift": 0.3}))
    return report_of(read_record(path))


def test_all_of_the_report_is_there(report: ExperimentReport) -> None:
    page = render_report(report)
    assert "Promote t1 (ship)" in page and "within its margin" in page and "sample ratio" in page
    assert page.count("<svg") == 2 and page.count('<span class="tag">look</span>') == 3
    for check in report.checks:
        assert check.name.replace("_", " ") in page
    assert "true effect" not in page


def test_nothing_is_loaded_or_run(report: ExperimentReport) -> None:
    page = render_report(report)
    assert "default-src 'none'" in page and "<script" not in page
    assert not re.findall(r"(?:src|href)\s*=", page) and "url(" not in page
    assert "width=device-width" in page


def test_a_phone_shows_whole_charts_and_named_cells(report: ExperimentReport) -> None:
    page = render_report(report)
    widths = [int(width) for width in re.findall(r"min-width:(\d+)px\" role=\"img\"", page)]
    assert len(widths) == 2 and max(widths) <= 340  # of 400 pixels without margins
    stacked = re.findall(r"<table class=\"[a-z ]*stack\">(.*?)</table>", page, re.DOTALL)
    assert len(stacked) == page.count("<table")
    for table in stacked:
        for row in re.findall(r"<tr><td.*?</tr>", table, re.DOTALL):
            title, *cells = re.findall(r"<td([^>]*)>(.)", row)
            assert "data-name" not in title[0] and cells
            assert all(
                "data-name=" in attributes or first == "<" for attributes, first in cells
            )  # an empty cell is hidden


def test_the_truth_of_a_simulation_stands_beside_the_interval(report: ExperimentReport) -> None:
    known = (None, *(KnownEffect(value=0.3, low=0.25, high=0.35) for _ in range(3)))
    page = render_report(report, PageExtras(known=known, remarks=("users are <b>simulated</b>",)))
    assert "true effect of the simulation" in page and page.count("+30.0%") >= 4
    assert "<b>simulated</b>" not in page and "&lt;b&gt;simulated" in page


@pytest.mark.parametrize(("days", "unit"), [(0.001, "seconds"), (0.5, "hours"), (7.0, "days")])
def test_the_time_axis_fits_the_length(report: ExperimentReport, days: float, unit: str) -> None:
    points = tuple(p.model_copy(update={"days": days * p.days / 7}) for p in report.points)
    page = render_report(report.model_copy(update={"days": days, "points": points}))
    assert f">{unit}<" in page


def test_a_report_without_a_judged_look(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    early = evidence(FILE, 1)
    append_decision(path, FILE, early.model_copy(update={"at": early.at + timedelta(seconds=1)}))
    assert "Hold" in render_report(report_of(read_record(path)))


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (
            "ctr of t1 is better: +0.0103117 (+0.00050573 to -0.0201178), +13.29%, p 0.0066",
            "CTR of t1 is better: +0.0103 (+0.000506 to -0.0201), +13.29%, p 0.0066",
        ),
        ("error_rate of t1 is within its margin", "error rate of t1 is within its margin"),
        ("latency_p90 of t_1 is worse by 12.34567", "latency p90 of t_1 is worse by 12.3"),
        ("5.5 of at least 7 days and 12,345 of at least 1,000 units", "5.5 of at least 7 days and 12,345 of at least 1,000 units"),
    ],
)  # fmt: skip
def test_reasons_are_readable(reason: str, shown: str) -> None:
    assert _readable(reason) == shown
