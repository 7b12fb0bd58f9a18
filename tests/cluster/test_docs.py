"""docs/operations.md: its commands run, its figures follow from the benchmarks, its alerts and files exist."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable

import pytest
import yaml

import components.deployment.rollout.connect as connect_module
from tests.cluster.api_process import ROOT, Api
from tests.cluster.objects_store import Json
from tests.cluster.served import FAST, install
from thinktwice.cli import main

Overlay = Callable[[str], list[Json]]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
ELSEWHERE = {"thinktwice bundle push --to s3://thinktwice-models/ctr": "tests/manifests/test_readme.py"}


def test_the_commands_run_in_their_order(
    api: Api, overlay: Overlay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = connect_module.open_session
    monkeypatch.setattr(
        connect_module,
        "open_session",
        lambda service, namespace, waiting, **more: real(service, namespace, FAST, **more),
    )
    assert len(COMMANDS) > 5
    for line in COMMANDS:
        words = shlex.split(line)
        if line in ELSEWHERE:
            continue
        if words[:3] == ["kubectl", "apply", "-k"]:
            resources = overlay(words[3].removeprefix("manifests/overlays/"))
            assert resources, line
            install(api, resources) if words[3].endswith("standard") else None
            continue
        assert words[0] == "thinktwice", line
        assert main(words[1:]) == 0, (line, capsys.readouterr().err)


def result(name: str) -> Json:
    return dict(json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text()))


def figure(pattern: str) -> float:
    match = re.search(pattern, PAGE)
    assert match, pattern
    return float(match[1].replace(",", ""))


def test_the_figures_follow_from_the_results() -> None:
    serving, gateway, feedback = result("serving"), result("gateway"), result("feedback")
    cores = serving["machine"]["cores"]
    torchserve, kserve = (serving["loads"][kind]["capacity_per_second"] / cores for kind in ("torchserve", "kserve"))
    assert figure(r"TorchServe \| capacity / cores = ([\d,]+)") == round(torchserve)
    assert figure(r"KServe runtime \| capacity / cores = ([\d,]+)") == round(kserve)
    (per_core,) = [bar["value"] for bar in gateway["bars"] if bar["name"] == "requests a second and core, by CPU time"]
    assert figure(r"QPS / ([\d,]+) \|") == round(per_core)
    event_us = feedback["figures"]["redis"]["service_cpu_us_per_event"]
    assert figure(r"events/s × ([\d,]+) µs") == math.ceil(event_us)
    qps, events = figure(r"Example: ([\d,]+) requests/s"), figure(r"and ([\d,]+) events/s")
    pods = max(2, math.ceil(qps / (0.5 * torchserve)))
    assert figure(r"per pod: ([\d,]+) pods") == pods
    assert figure(r"([\d.]+) cores of gateway") == round(qps / per_core, 2)
    assert figure(r"([\d.]+) cores of feedback") == round(events * event_us / 1e6, 2)
    assert figure(r"feedback, ([\d.]+) GiB") == pods * 1.5
    requests = yaml.safe_load((ROOT / "manifests/base/servingruntime.yaml").read_text())["spec"]["containers"][0][
        "resources"
    ]
    assert requests["requests"] == {"cpu": "1", "memory": "1536Mi", "ephemeral-storage": "256Mi"}
    # Half load is where the benchmark refuses nothing.
    assert serving["loads"]["torchserve"]["50"]["gate"]["outcomes"]["refused"] == 0


def test_the_sizes_follow_from_the_results() -> None:
    """Memory of a process and of Redis, by the formulas of the page, with the example's numbers."""
    sizing = result("sizing")
    process, row = sizing["process"], sizing["bytes"]
    fixed, per_mb, per_item = (
        figure(r"process, MB \| ([\d,]+) \+"),
        figure(r"\+ ([\d.]+) × MB of the bundle"),
        figure(r"items × ([\d,]+) B \|"),
    )
    assert (fixed, per_mb) == (round(process["fixed_mb"]), round(process["mb_per_mb_of_bundle"], 1))
    assert per_item == round(process["bytes_per_item"])
    for each in process["measured"]:
        predicted = fixed + per_mb * each["bundle_mb"] + each["items"] * per_item / 1e6
        assert predicted == pytest.approx(each["mb"], rel=0.02)
    user, item = figure(r"users × ([\d,]+) B"), figure(r"users × [\d,]+ B \+ items × ([\d,]+) B")
    assert (user, item) == (round(row["user"]), round(row["item"]))
    for store in sizing["stores"]:  # other numbers of users and items than those that the rows were measured with
        assert store["users"] * user + store["items"] * item == pytest.approx(store["bytes"], rel=0.15)
    views = re.findall(r"^\| `(\w+)` \| (\d+) \|$", PAGE, re.M)
    assert {name: int(size) for name, size in views} == {
        n: round(v["bytes_per_row"]) for n, v in sizing["views"].items()
    }
    error = max(abs(store["predicted_bytes"] / store["bytes"] - 1) for store in sizing["stores"])
    assert figure(r"whole stores within (\d+) %") == round(error * 100)
    users, items = figure(r"With ([\d,]+) users"), figure(r"users, ([\d,]+) items and a bundle")
    bundle = figure(r"a bundle of ([\d,]+) MB")
    assert figure(r"a process takes ([\d,]+) MB") == round(fixed + per_mb * bundle + items * per_item / 1e6)
    assert figure(r"version ([\d,]+) MB of Redis") == round((users * user + items * item) / 1e6)
    assert not sizing["quick"] and all(bar["holds"] for bar in sizing["bars"])


def test_every_alert_and_every_file_of_the_page_exists() -> None:
    rules = yaml.safe_load((ROOT / "manifests/components/monitoring/prometheusrule.yaml").read_text())
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Thinktwice\w+)`", PAGE)) == alerts
    for path in re.findall(r"`((?:manifests|components|tests|benchmarks)/[\w./-]+)`", PAGE):
        known = ROOT / path if (ROOT / path).exists() else ROOT / "manifests" / path
        assert known.exists(), path
