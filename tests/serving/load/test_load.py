"""The load tool measures what callers feel, finds wrong answers, and counts every request exactly once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import typer
from typer.testing import CliRunner

from serving.load.check import OUTCOMES, wrong
from serving.load.cli import load, require_loopback
from serving.load.drive import Target, closed_loop, open_loop
from serving.load.plan import body_of, poisson, read_requests
from serving.load.report import Step, plot, strip, trouble
from tests.serving.load.server import Behaviour, good, right, serving
from thinktwice.errors import DataError, RequestError, ServerError

ASK = {"user_id": "u", "candidates": ["a", "b", "c"]}


def test_arrivals_are_poisson_and_the_same_for_a_seed() -> None:
    found = poisson(200, 50, seed=3)
    assert np.array_equal(found, poisson(200, 50, seed=3))
    assert not np.array_equal(found[:100], poisson(200, 50, seed=4)[:100])
    assert found[0] > 0 and found[-1] < 50 and (np.diff(found) > 0).all()
    assert abs(len(found) - 10_000) < 5 * 100
    gaps = np.diff(found)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential gaps have as much spread as mean"
    for rate, seconds in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="above 0"):
            poisson(rate, seconds, 0)


STALL = 0.8  # seconds


def stalling(at: int) -> Behaviour:
    """Answers nothing for a while from request ``at`` on."""
    until: list[float] = []

    async def behave(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        now = asyncio.get_running_loop().time()
        if number == at:
            until.append(now + STALL)
        if until and now < until[0]:
            await asyncio.sleep(until[0] - now)
        return 200, {}, right(body)

    return behave


def test_a_stall_shows_in_every_request_that_was_due_within_it() -> None:
    moments = poisson(100, 2, seed=0)
    with serving(stalling(40)) as (url, _):
        found = open_loop(Target(url, [ASK]), moments)
    assert found.counts() == {**dict.fromkeys(OUTCOMES, 0), "ok": len(moments)}
    within = (moments >= moments[40]) & (moments < moments[40] + STALL)
    assert within.sum() > 50
    # Nobody was answered before the stall was over, and latency counts from the moment a request was due.
    least = moments[40] + STALL - moments[within]
    assert (found.latency[within] >= least - 1e-3).all()


def test_the_closed_loop_has_as_many_slow_requests_as_callers() -> None:
    with serving(stalling(40)) as (url, _):
        found = closed_loop(Target(url, [ASK]), connections=3, seconds=1.5)
    assert found.count("ok") == len(found.latency) > 60
    assert (np.sort(found.latency)[-3:] >= STALL - 0.1).all()
    assert found.throughput > 0


def test_headers_say_when_a_request_was_due_and_who_it_is() -> None:
    moments = np.array([0.0, 0.05, 0.1])
    with serving(good) as (url, heads):
        open_loop(Target(url, [ASK], deadline=0.25), moments)
    lines = [dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]) for head in heads[:3]]
    assert [line["X-Request-Id"] for line in lines] == ["load-0", "load-1", "load-2"]
    assert [line["X-Deadline-Ms"] for line in lines] == ["250"] * 3
    starts = [float(line["X-Request-Start"].removeprefix("t=")) for line in lines]
    assert np.diff(starts) == pytest.approx([0.05, 0.05], abs=1e-4)


def lying(change: str) -> Behaviour:
    async def behave(number: int, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        value = orjson.loads(right(body))
        rows = value["predictions"][0]["items"]
        if change == "a row too few":
            rows.pop()
        elif change == "ranks":
            rows[0]["rank"] = rows[1]["rank"]
        elif change == "order":
            rows[0]["rank"], rows[1]["rank"] = rows[1]["rank"], rows[0]["rank"]
        elif change == "probability":
            rows[0]["probability"] = 1.5
        elif change == "version":
            rows[1]["model_version"] = "v2"
        elif change == "no JSON":
            return 200, {}, b"{"
        return 200, {}, orjson.dumps(value)

    return behave


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("a row too few", "2 rows instead of 3"),
        ("ranks", "not a permutation"),
        ("order", "do not follow"),
        ("probability", "outside of 0 to 1"),
        ("version", "several model versions"),
        ("no JSON", "not a valid response"),
    ],
)
def test_wrong_answers_are_found(change: str, words: str) -> None:
    with serving(lying(change)) as (url, _):
        found = open_loop(Target(url, [ASK]), np.array([0.0, 0.01]))
    assert found.count("wrong") == 2
    assert words in found.first_wrong
    (sentence,) = trouble([Step("x", 1.0, found)])
    assert sentence.startswith("x: 2 requests were answered wrongly") and words in sentence
    assert len(found.answered) == 0


def test_an_answer_that_changes_is_found() -> None:
    async def changing(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, right(body, (f"v{number}",))

    with serving(changing) as (url, _):
        found = open_loop(Target(url, [ASK, {**ASK, "user_id": "w"}]), np.array([0.0, 0.01]))
    assert (found.count("ok"), found.unequal) == (2, 2)
    assert "got a different response when sent again" in trouble([Step("x", 1.0, found)])[0]


def test_every_request_is_counted_once() -> None:
    """Refused with and without Retry-After, failed, lost, late: each by its own name, and they sum to what was due."""

    async def behave(number: int, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        kind = json.loads(body)["instances"][0]["user_id"]
        if kind == "late":
            await asyncio.sleep(0.3)
        return {
            "refused": (503, {"Retry-After": "1"}, b"{}"),
            "silent": (429, {}, b"{}"),
            "failed": (500, {}, b"{}"),
            "lost": None,
        }.get(kind, (200, {}, right(body)))

    kinds = ["ok", "refused", "silent", "failed", "lost", "late"]
    requests = [{**ASK, "user_id": kind} for kind in kinds]
    with serving(behave) as (url, _):
        found = open_loop(Target(url, requests, deadline=0.2), np.arange(12) * 0.01)
    assert found.outcomes[:6] == ["ok", "refused", "refused", "failed", "lost", "late"]
    assert sum(found.counts().values()) == 12
    assert found.refused_silently == 2
    assert np.isnan(found.latency[[4, 10]]).all() and not np.isnan(found.latency[[0, 1, 2, 3, 5]]).any()
    assert len(found.answered) == 4


def test_too_many_under_way_are_not_sent_and_said_to_be() -> None:
    async def slow(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        await asyncio.sleep(0.5)
        return 200, {}, right(body)

    with serving(slow) as (url, _):
        found = open_loop(Target(url, [ASK], most_open=2), np.arange(5) * 0.001)
    assert found.counts()["ok"] == 2 and found.counts()["not sent"] == 3


@pytest.mark.parametrize(
    "body", [b'{"outputs": []}', b"[]", b'{"predictions": []}', b"null", b'{"predictions": [{"rows": 1}]}']
)
def test_things_that_are_no_answers(body: bytes) -> None:
    assert "not a valid response" in wrong(ASK, body)


def test_v2_answers_and_the_best_k() -> None:
    request = {**ASK, "k": 2}
    outputs = [
        {"name": "rank", "data": [1, 2]},
        {"name": "probability", "data": [0.9, 0.1]},
        {"name": "model_version", "data": ["v1", "v1"]},
    ]
    assert wrong(request, orjson.dumps({"model_version": "v1", "outputs": outputs})) == ""
    assert "best rows" in wrong(
        request, orjson.dumps({"model_version": "v1", "outputs": [{"name": "rank", "data": [2, 1]}, *outputs[1:]]})
    )
    assert json.loads(body_of(request, "v2"))["inputs"][0]["shape"] == [1]


def test_only_this_machine_unless_told_otherwise() -> None:
    require_loopback("http://127.0.0.1:8080")
    require_loopback("http://localhost:8080")
    for url in ("http://192.0.2.1:80", "nonsense", "http://0.0.0.0:80"):
        with pytest.raises(ServerError, match="--allow-remote"):
            require_loopback(url)


def test_requests_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"candidates": ["a"]}\n\n{"rows": [{}]}\n')
    assert read_requests(file) == [{"candidates": ["a"]}, {"rows": [{}]}]
    for text, error, words in (
        ("", DataError, "is empty"),
        ("{", RequestError, "line 1"),
        ("{}\n3", RequestError, "line 2"),
    ):
        file.write_text(text)
        with pytest.raises(error, match=words):
            read_requests(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(tmp_path / "none")


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(load)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})


def test_the_command_prints_a_table_and_writes_files(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(ASK))
    common = ["--requests", str(file), "--duration", "0.3", "--warm-up", "0.1"]
    out = ["--json", str(tmp_path / "load.json"), "--plot", str(tmp_path / "load.html")]
    with serving(good) as (url, _):
        done = invoke("--url", url, *common, "--connections", "2", "--steps", "10,20", *out)
    assert done.exit_code == 0, done.output
    for words in ("2 callers", "10 %", "20 %", "p99.9", "answered/s"):
        assert words in done.output
    steps = json.loads((tmp_path / "load.json").read_text())
    assert [step["name"] for step in steps] == ["2 callers", "10 %", "20 %"]
    for step in steps:
        assert step["sent"] == sum(step["outcomes"].values()) == step["outcomes"]["ok"]
        assert 0 < step["latency_ms"]["p50"] <= step["latency_ms"]["p99"] <= step["latency_ms"]["max"]
    assert steps[2]["offered_per_second"] == pytest.approx(2 * steps[1]["offered_per_second"])
    page = (tmp_path / "load.html").read_text()
    assert page.count("<svg") >= 1 and "10 %" in page


def test_the_command_ends_with_1_when_something_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(ASK))
    with serving(lying("probability")) as (url, _):
        done = invoke("--url", url, "--requests", str(file), "--duration", "0.2", "--rate", "50")
    assert done.exit_code == 1
    assert "answered wrongly" in done.output
    for arguments, words in (
        (("--url", "http://127.0.0.1:9", "--requests", str(file)), "no predictor answers"),
        (("--state", str(tmp_path)), "contains no champion"),
    ):
        failed = invoke(*arguments)
        assert failed.exit_code == 1
        assert words in str(failed.exception) + failed.output
    for option in (("--protocol", "v3"), ("--steps", "50,x")):
        assert invoke(*option).exit_code == 2


def test_a_step_without_answers_is_still_shown() -> None:
    async def refuse(number: int, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 503, {"Retry-After": "1"}, b"{}"

    with serving(refuse) as (url, _):
        found = open_loop(Target(url, [ASK]), np.array([0.0]))
    step = Step("x", 1.0, found)
    assert np.isnan(step.percentile(50)) and strip(step) == "no answers" and "Nothing to draw" in plot([step])
