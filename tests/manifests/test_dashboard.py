"""The dashboard asks for what the predictor really tells: every metric and every label in it exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving.telemetry.metrics import Metrics

FILE = Path(__file__).resolve().parents[2] / "manifests" / "observability" / "grafana-predictor.json"
FUNCTIONS = {"histogram_quantile", "sum", "rate", "increase", "max", "by"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return value


@pytest.fixture(scope="module")
def exported() -> tuple[set[str], set[str]]:
    """Sample names and label names of a predictor."""
    registry = CollectorRegistry()
    metrics = Metrics("a", "v1", registry)
    metrics.defaulted("user", "timeout")
    metrics.mode("corrected")
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {s.name for s in samples}, {label for s in samples for label in s.labels}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_and_label_exists(dashboard: dict[str, Any], exported: tuple[set[str], set[str]]) -> None:
    names, labels = exported
    asked = {name for text in expressions(dashboard) for name in re.findall(r"thinktwice_\w+", text)}
    assert asked <= names
    for text in expressions(dashboard):
        inside = re.findall(r"[{,](\w+)(?==~?\")", text) + [
            label for group in re.findall(r"by \(([\w,]+)\)", text) for label in group.split(",")
        ]
        # Prometheus adds the namespace to what it scrapes: the services of one cluster are shown apart.
        assert set(inside) <= {*labels, "namespace"}, text
        assert text.count("thinktwice_") == text.count('{namespace="$namespace"'), text
        bare = set(re.findall(r"\b([a-z_]+)\b(?=\s*\()", text))
        assert bare <= FUNCTIONS, text
        assert text.count("(") == text.count(")") and text.count("{") == text.count("}")


def test_everything_the_predictor_tells_is_shown(
    dashboard: dict[str, Any], exported: tuple[set[str], set[str]]
) -> None:
    shown = " ".join(expressions(dashboard))
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in exported[0]}
    assert not sorted(family for family in families if family not in shown)


def test_panels_do_not_overlap_and_say_what_they_show(dashboard: dict[str, Any]) -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert all(p["title"] and p["description"].endswith(".") for p in dashboard["panels"])
    assert [v["name"] for v in dashboard["templating"]["list"]] == [
        "datasource",
        "namespace",
        "arm",
        "version",
    ]
    scope, *chosen = dashboard["templating"]["list"][1:]
    assert not scope["multi"] and not scope["includeAll"] and scope["query"].endswith(", namespace)")
    assert all('{namespace="$namespace"}' in variable["query"] for variable in chosen)
