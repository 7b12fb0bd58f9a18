"""The commands `serve` and `predict` without a server: help, refusals, and the table from a canned answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from serving import cli
from serving.config import ServingConfig
from serving.local import torchserve_process
from tests.components.deployed import make_store
from tests.serving.releases import pack
from thinktwice.cli import main
from thinktwice.errors import BundleError, RequestError, ServerError
from thinktwice.files import sha256_file, write_json
from thinktwice.printable import printable
from thinktwice.release.champion import install_champion
from thinktwice.release.release import ReleasePolicy

ITEM = {"probability": 0.25, "uncertainty": 0.5, "num_paths": 5, "cold": False}
ANSWER = {
    "predictions": [
        {
            "items": [{"item_id": "a", "rank": 2, **ITEM}, {"item_id": "b", "rank": 1, **ITEM, "cold": True}],
            "cold_user": True,
            "defaulted": ["slot"],
            "paths_capped": True,
            "model_version": "v1",
        }
    ]
}


@pytest.fixture
def app() -> typer.Typer:
    out = typer.Typer()
    out.command("serve")(cli.serve)
    out.command("predict")(cli.predict)
    return out


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Answers with ``server.answer`` (status, body) and keeps the last body in ``server.asked``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
            status, body = self.server.answer  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    out = HTTPServer(("127.0.0.1", 0), Handler)
    out.answer = (200, ANSWER)  # type: ignore[attr-defined]
    thread = threading.Thread(target=out.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield out
    out.shutdown()
    thread.join()
    out.server_close()


def ask(app: typer.Typer, server: HTTPServer, *more: str) -> Any:
    url = f"http://127.0.0.1:{server.server_port}"
    arguments = ["predict", "--url", url, "--user", "7", "--candidates", "a, b,", *more]
    return CliRunner().invoke(app, arguments, catch_exceptions=True)


def test_predict_prints_a_table(app: typer.Typer, server: HTTPServer) -> None:
    result = ask(app, server, "--context", "slot=007", "--context", "bid=0.5", "--context", "n=3", "--k", "2")
    assert result.exit_code == 0, result.output
    assert server.asked == {  # type: ignore[attr-defined]
        "instances": [
            {"user_id": "7", "candidates": ["a", "b"], "context": {"slot": "007", "bid": 0.5, "n": 3}, "k": 2}
        ]
    }
    lines = result.output.splitlines()
    assert next(i for i, line in enumerate(lines) if " b " in line) < next(
        i for i, line in enumerate(lines) if " a " in line
    )
    assert "0.2500" in result.output
    assert "user 7 is unknown" in result.output
    assert "treated as missing: slot" in result.output
    assert "more candidates were uncertain" in result.output


@given(
    st.lists(st.text(min_size=1) | st.text(',"ab \n\t', min_size=1), max_size=5), st.sampled_from([",", ", ", " ,\n"])
)
def test_predict_takes_every_id_in_quotes(items: list[str], comma: str) -> None:
    assert cli._items(comma.join('"' + item.replace('"', '""') + '"' for item in items)) == items


@given(st.lists(st.text(st.characters(exclude_characters=',"'), min_size=1), max_size=5))
def test_predict_takes_ids_without_quotes_and_without_the_space_around_them(items: list[str]) -> None:
    assert cli._items(",".join(items)) == [item.strip() for item in items if item.strip()]


@pytest.mark.parametrize(
    ("text", "items"), [('"a', ['"a']), ('"a"b,c', ['"a"b', "c"]), ('a"b"', ['a"b"']), ('"",a,,', ["a"])]
)
def test_a_quote_that_does_not_enclose_an_id_is_part_of_it(text: str, items: list[str]) -> None:
    assert cli._items(text) == items


def test_predict_prints_json(app: typer.Typer, server: HTTPServer) -> None:
    assert json.loads(ask(app, server, "--json").output) == ANSWER


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            (400, {"error": "instances[0].context.x", "field": "x"}),
            RequestError,
            r"refused .* instances\[0\]\.context\.x",
        ),
        ((503, {"code": 503, "message": "no worker"}), ServerError, r"status 503 \(no worker\)"),
        ((500, "x"), ServerError, "status 500"),
    ],
)
def test_predict_says_what_the_server_said(
    app: typer.Typer, server: HTTPServer, answer: tuple[int, Any], kind: type[Exception], message: str
) -> None:
    server.answer = answer  # type: ignore[attr-defined]
    with pytest.raises(kind, match=message):
        raise ask(app, server).exception


def test_predict_without_a_server(app: typer.Typer) -> None:
    arguments = ["predict", "--url", "http://127.0.0.1:9", "--user", "7", "--candidates", "a"]
    with pytest.raises(ServerError, match=r"no predictor answers at .* start one with 'thinktwice serve'"):
        raise CliRunner().invoke(app, arguments).exception  # type: ignore[misc]
    with pytest.raises(ServerError, match="is not an address"):
        cli.ask("localhost:8080", {})


def test_predict_refuses_a_context_that_is_no_pair(app: typer.Typer, server: HTTPServer) -> None:
    result = ask(app, server, "--context", "slot")
    assert result.exit_code == 2
    assert "KEY=VALUE" in result.output


def test_serve_needs_a_champion(app: typer.Typer, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="contains no champion: run 'thinktwice pipeline run' first"):
        raise CliRunner().invoke(app, ["serve", "--state", str(tmp_path)]).exception  # type: ignore[misc]
    (tmp_path / "champion").mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        raise CliRunner().invoke(app, ["serve", "--state", str(tmp_path)]).exception  # type: ignore[misc]


def test_serve_refuses_a_damaged_archive_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchserve_process, "running", lambda *a, **k: pytest.fail("it starts"))
    version = tmp_path / "versions" / "000001"
    version.mkdir(parents=True)
    archive = version / "ctr.mar"
    archive.write_bytes(b"a whole archive")
    hashes = {"bundle_hash": "0" * 64, "archive_sha256": sha256_file(archive)}
    write_json(version / "champion.json", {"model_version": "v1", "feature_service": "", "deployed_at": 0.0, **hashes})
    (tmp_path / "champion").symlink_to(version)
    archive.write_bytes(b"a whole")
    assert main(["serve", "--state", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "ctr.mar" in error and "pipeline run" in error and error.count("\n") == 1
    archive.unlink()
    assert main(["serve", "--state", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "ctr.mar" in error and error.count("\n") == 1


def test_serve_takes_an_oldest_and_a_pinned_release(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, store = pack(small / "bundle", tmp_path), make_store(tmp_path / "store")
    state = tmp_path / "state"
    champion = install_champion(state, bundle_dir=small / "bundle", archive=archive, feature_store_dir=store)
    found: list[ReleasePolicy] = []

    def running(*_: Any, config: ServingConfig, **more: Any) -> Any:
        found.append(config.release)
        raise ServerError("enough")

    monkeypatch.setattr(torchserve_process, "running", running)
    monkeypatch.delenv("THINKTWICE_SERVING", raising=False)
    pinned = champion.info.bundle_hash
    options = ["--oldest-release", "2026-02-01", "--pinned-release", pinned, "--pinned-release", "0" * 64]
    assert main(["serve", "--state", str(state)]) == main(["serve", "--state", str(state), *options]) == 1
    expected = ReleasePolicy(oldest=datetime(2026, 2, 1, tzinfo=timezone.utc), pinned=(pinned, "0" * 64))
    assert found == [ReleasePolicy(), expected]
    assert main(["serve", "--state", str(state), "--pinned-release", "abc"]) == 1
    assert "--pinned-release is not a SHA-256 of 64 hex digits" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["serve", "predict"])
def test_every_option_is_explained(app: typer.Typer, verb: str) -> None:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert command.help
    assert all(p.help for p in command.params)


@pytest.mark.parametrize("value", ["[/foo]", "[red]x", ":apple:", "\x1b[31mx", "\x1b]0;t\x07", "a\nb", "\u202ex"])
def test_predict_shows_hostile_ids_as_they_are(app: typer.Typer, server: HTTPServer, value: str) -> None:
    prediction = ANSWER["predictions"][0]
    items = [{**prediction["items"][0], "item_id": value}]  # type: ignore[index]
    changed = {**prediction, "items": items, "defaulted": [value], "model_version": value}
    server.answer = (200, {"predictions": [changed]})  # type: ignore[attr-defined]
    result = ask(app, server, "--user", value)
    assert result.exit_code == 0, result.exception
    assert result.output.count(printable(value)) >= 5 and printable(result.output, "\n") == result.output
    assert server.asked["instances"][0]["user_id"] == value  # type: ignore[attr-defined]
    assert json.loads(ask(app, server, "--json").output)["predictions"][0]["items"] == items
