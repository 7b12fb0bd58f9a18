"""The commands ``serve`` and ``predict``."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thinktwice.console.options import WORK, State, Work, state_folder
from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.console.stop import on_stop
from thinktwice.console.terminal import console_here
from thinktwice.errors import RequestError, ServerError
from thinktwice.printable import printable

if TYPE_CHECKING:
    from serving.config import ServingConfig

ANSWER_LIMIT = 60.0  # seconds
DEFAULT_PORT = 8080


#: One id of --candidates and the comma after it: quoted (group 1) or unquoted (group 2).
_ITEM = re.compile(r'\s*(?:"((?:[^"]|"")*)"(?=\s*(?:,|\Z))|([^,]*?))\s*(?:,|\Z)')
READY = "ready"  # first word of the line that `serve` prints when the server answers


def serve(
    state: State = None,
    work: Work = WORK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the inference API on 127.0.0.1.")] = DEFAULT_PORT,
    log: Annotated[
        Path | None, typer.Option(help="File for the server's output.", show_default="STATE/logs/serve-PORT.log")
    ] = None,
    start_limit: Annotated[float, typer.Option(min=1, help="Time limit for the start in seconds.")] = 180.0,
    server: Annotated[
        Literal["torchserve", "kserve"], typer.Option(help="Server to run; both give the same answers.")
    ] = "torchserve",
    oldest_release: Annotated[
        datetime | None,
        typer.Option(
            help="Refuse a release that was written before this time (UTC).",
            show_default="release.oldest of the settings",
        ),
    ] = None,
    pinned_release: Annotated[
        list[str] | None,
        typer.Option(
            help="Refuse all releases except the one with this release or bundle hash; can be repeated.",
            show_default="release.pinned of the settings",
        ),
    ] = None,
) -> None:
    """Serve the champion on 127.0.0.1 until Ctrl-C.

    The release is checked first: the hashes of its files, and its signature if THINKTWICE_TRUSTED_KEYS is set.

    Prints "ready URL" when the server has scored a request. KServe v1 is at /v1/models/ctr:predict, Open
    Inference v2 at /v2/models/ctr/infer.
    """
    from thinktwice.release.champion import require_champion, verify_archive

    state = state_folder(state, work)
    champion = require_champion(state, "--state or --work")
    archive = verify_archive(champion)
    from serving.config import load_config
    from serving.local import kserve_process, torchserve_process

    config = _with_policy(load_config(), oldest_release, pinned_release)
    console = console_here(stderr=True)
    say(console, f"serving {champion.info.model_version} (bundle {champion.info.bundle_hash[:12]})")
    on_stop("server stopped")
    running: Any = torchserve_process.running if server == "torchserve" else kserve_process.running
    with (
        console.status("starting") as status,
        running(
            archive,
            feature_store=champion.feature_store_dir if champion.info.feature_service else None,
            config=config,
            port=port,
            log=log or state / "logs" / f"serve-{port}.log",
            limit=start_limit,
            progress=status.update,
        ) as started,
    ):
        status.stop()
        typer.echo(f"{READY} {started.predict_url}")
        say(console, f"ready after {started.seconds_to_ready:.1f} s, log {started.log}, stop with Ctrl-C")
        while True:
            started.check()
            time.sleep(0.2)


def _with_policy(config: ServingConfig, oldest: datetime | None, pinned: list[str] | None) -> ServingConfig:
    from thinktwice.errors import reason
    from thinktwice.release.release import ReleasePolicy

    overrides: dict[str, Any] = {}
    if oldest is not None:
        overrides["oldest"] = oldest if oldest.tzinfo else oldest.replace(tzinfo=timezone.utc)
    if pinned:
        overrides["pinned"] = pinned
    try:
        policy = ReleasePolicy.model_validate(config.release.model_dump() | overrides)
    except ValueError as error:
        raise ServerError(f"--pinned-release is not a SHA-256 of 64 hex digits ({reason(error)})") from error
    return config.model_copy(update={"release": policy})


def predict(
    user: Annotated[str, typer.Option(help="Id of the user.")],
    candidates: Annotated[
        str,
        typer.Option(
            help="Ids of the items to score, separated by commas. Quote ids that contain a comma or start or end with a space, as in CSV: "
            "double quotes around them, and doubled inside."
        ),
    ],
    context: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A context field, or timestamp: Unix seconds or a time such as 2024-03-01T10:00:00+09:00, without an offset in the "
            "time zone of the schema (default UTC); the default is now. Can be repeated.",
        ),
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Return only the best K items, best first.")] = None,
    url: Annotated[str, typer.Option(help="Address of the server.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
    raw: Annotated[bool, typer.Option("--json", help="Print the response as JSON instead of a table.")] = False,
) -> None:
    """Request click probabilities of items for a user from a running server, and print a table."""
    request: dict[str, Any] = {
        "user_id": user,
        "candidates": _items(candidates),
        "context": dict(_pair(text) for text in context or []),
    }
    if k is not None:
        request["k"] = k
    answer = ask(url, {"instances": [request]})
    if raw:
        typer.echo(json.dumps(answer, indent=2))
        return
    prediction = answer["predictions"][0]
    console, user = console_here(), printable(user)
    names = ("rank", "item", "probability", "uncertainty", "paths", "")
    columns = [Column(name, right=name not in ("item", "")) for name in names]
    records = [
        Record(
            (
                str(item["rank"]),
                item["item_id"],
                f"{item['probability']:.4f}",
                f"{item['uncertainty']:.3f}",
                str(item["num_paths"]),
                "cold" if item["cold"] else "",
            )
        )
        for item in sorted(prediction["items"], key=lambda entry: entry["rank"])
    ]
    print_table(console, columns, records, title=f"user {user}, model {printable(prediction['model_version'])}")
    if prediction["cold_user"]:
        say(console, f"user {user} is unknown to the feature store")
    if prediction["paths_capped"]:
        say(
            console,
            "more candidates were uncertain than one request may spend work on: the least uncertain kept their first score",
        )
    if prediction["defaulted"]:
        say(console, f"not given, treated as missing: {', '.join(map(printable, prediction['defaulted']))}")


def openapi(
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder.", show_default="that of the champion")] = None,
    state: State = None,
    work: Work = WORK,
    out: Annotated[Path | None, typer.Option(help="File to write; the default is standard output.")] = None,
) -> None:
    """Print the OpenAPI 3.1 document of a model's requests and responses."""
    from serving.protocol.openapi import document
    from serving.scorer import answer_type
    from thinktwice.files import atomic_file
    from thinktwice.release.bundle import load_bundle
    from thinktwice.release.champion import MODEL_NAME, require_champion

    if bundle is None:
        bundle = require_champion(state_folder(state, work), "--state, --work or --bundle").bundle_dir
    opened = load_bundle(bundle)
    openapi_document = document(
        opened.schema,
        MODEL_NAME,
        opened.manifest.model_version,
        online=bool(opened.manifest.feature_service),
        answer=answer_type(opened.engine),
    )
    text = json.dumps(openapi_document, indent=2)
    if out is None:
        typer.echo(text)
        return
    with atomic_file(out) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a v1 request body to a server and return the response.

    Raises:
        ServerError: no predictor responds at this address, or it failed.
        RequestError: the server refused the request.
    """
    if not url.startswith(("http://", "https://")):
        raise ServerError(f"--url {url} is not an address: give http://HOST:PORT")
    address = url.rstrip("/") + "/v1/models/ctr:predict"
    request = urllib.request.Request(  # noqa: S310 (the scheme was checked)
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT) as response:  # noqa: S310
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            message = _server_message(error)
        if 400 <= error.code < 500:
            raise RequestError(f"the server refused the request: {message}", status=error.code) from error
        raise ServerError(f"the server at {url} failed with status {error.code} ({message}): see its log") from error
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ServerError(f"no predictor answers at {url} ({reason}): start one with 'thinktwice serve'") from error
    match answer:
        case {"predictions": [{"items": [*_]}, *_]}:
            return dict(answer)
    raise ServerError(f"what answers at {url} is not a thinktwice predictor: start one with 'thinktwice serve'")


def _server_message(error: urllib.error.HTTPError) -> str:
    text = error.read().decode("utf-8", errors="replace")
    try:
        value = json.loads(text)
        return str(value.get("error") or value.get("message") or text)
    except (ValueError, AttributeError):
        return text[:200]


def _items(text: str) -> list[str]:
    """Comma-separated ids. White space around ids and empty ids are ignored, except in double quotes."""
    items = (quoted.replace('""', '"') or plain for quoted, plain in _ITEM.findall(text))
    return [item for item in items if item]


def _pair(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--context")
    return name, _number_or_text(value)


def _number_or_text(value: str) -> Any:
    """A number if the text is a plain decimal number; 007 and 1e5 are more likely ids and stay text."""
    return json.loads(value) if re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.\d+)?", value) else value
