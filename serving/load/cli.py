"""The command ``load``."""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from serving.cli import DEFAULT_PORT
from serving.load.drive import PATHS, Target, closed_loop, open_loop
from serving.load.plan import poisson, read_requests, requests_of
from serving.load.report import Step, plot, print_steps, trouble
from thinktwice.console.options import WORK, State, Work, state_folder
from thinktwice.console.output import say
from thinktwice.console.stop import on_stop
from thinktwice.console.terminal import console_here
from thinktwice.errors import ServerError
from thinktwice.files import atomic_file

MADE_UP = 200  # distinct generated requests
LOGGED = (
    "A server that keeps a prediction log has written these requests after part_seconds (60 seconds by default), or when it "
    "stops."
)


def load(
    url: Annotated[str, typer.Option(help="Address of the server.")] = f"http://127.0.0.1:{DEFAULT_PORT}",
    state: State = None,
    work: Work = WORK,
    requests: Annotated[
        Path | None,
        typer.Option(help="File with one request per line, instead of generated requests.", show_default=False),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, max=1000, help="Candidates per generated request.")] = 100,
    protocol: Annotated[str, typer.Option(help="Protocol of the requests, v1 or v2.")] = "v1",
    duration: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds per step.")] = 10.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before measuring starts.")] = 1.0,
    connections: Annotated[int, typer.Option(min=1, max=256, help="Callers of the closed loop.")] = 4,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, help="Open loop at this number of requests per second.", show_default=False),
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Open loop at these percentages of the throughput of the closed loop, e.g. 50,80,110.")
    ] = "",
    deadline_ms: Annotated[
        float | None, typer.Option(min=1, help="Deadline of each request in milliseconds.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for arrivals and generated requests.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the results to this JSON file.")] = None,
    plot_out: Annotated[
        Path | None, typer.Option("--plot", help="Write an HTML page with a plot to this file.")
    ] = None,
    allow_remote: Annotated[bool, typer.Option(help="Allow the address of another machine.")] = False,
) -> None:
    """Send load to a running predictor and print latency, throughput, errors and wrong responses.

    Without --rate and --steps: callers that wait for their answers (closed loop). With them: Poisson arrivals (open loop), whose
    latencies count from the moment a request was due, so that a stall shows in full. Ends with 1 when an answer was wrong or
    never came.
    """
    if protocol not in PATHS:
        raise typer.BadParameter(f"{protocol!r} is neither v1 nor v2", param_hint="--protocol")
    percents = [_percent(text) for text in steps.split(",") if text.strip()]
    if not allow_remote:
        require_loopback(url)
    if requests is not None:
        requests_to_send = read_requests(requests)
    else:
        from serving.load.context import typical_contexts
        from thinktwice.release.champion import require_champion
        from thinktwice.schema import SCHEMA_FILE, load_schema

        champion = require_champion(state_folder(state, work), "--state, --work or --requests")
        schema = load_schema(champion.bundle_dir / SCHEMA_FILE)
        contexts = typical_contexts(champion.bundle_dir, count=MADE_UP, seed=seed)
        requests_to_send = requests_of(
            champion.feature_store_dir, schema, count=MADE_UP, candidates=candidates, seed=seed, contexts=contexts
        )
    on_stop("load stopped before its end; nothing is shown of it")
    target = Target(url, requests_to_send, protocol, None if deadline_ms is None else deadline_ms / 1000)
    if warm_up:
        warm_up_run = closed_loop(target, connections, warm_up)
        if warm_up_run.count("lost") == len(warm_up_run.outcomes):
            raise ServerError(f"no predictor answers at {url}: start one with 'thinktwice serve'")
    results: list[Step] = []
    if rate is None:
        measured = closed_loop(target, connections, duration)
        results.append(Step(f"{connections} callers", None, measured))
    rates = [("open loop", rate)] if rate is not None else []
    rates += [(f"{p:g} %", results[0].measured.throughput * p / 100) for p in percents if rate is None]
    for name, offered in rates:
        if offered <= 0:
            break
        results.append(Step(name, offered, open_loop(target, poisson(offered, duration, seed))))
    _write_results(results, json_out, plot_out)


def require_loopback(url: str) -> None:
    """Raise a ServerError unless every address of the host is this machine's own."""
    host = urlsplit(url).hostname
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, None)} if host else set()
    except OSError as error:
        raise ServerError(f"--url {url}: {host} is unknown ({error}): correct it") from error
    if not addresses or not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise ServerError(f"--url {url} is not this machine: load on another one needs --allow-remote")


def _write_results(results: list[Step], json_out: Path | None, plot_out: Path | None) -> None:
    console = console_here()
    print_steps(console, results)
    say(console, LOGGED)
    problems = trouble(results)
    for sentence in problems:
        say(console, sentence)
    if json_out is not None:
        with atomic_file(json_out) as temporary:
            temporary.write_text(json.dumps([s.as_json() for s in results], indent=2), encoding="utf-8")
    if plot_out is not None:
        with atomic_file(plot_out) as temporary:
            temporary.write_text(plot(results), encoding="utf-8")
    if problems:
        raise typer.Exit(1)


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1000:
        raise typer.BadParameter(f"{text!r} is not a percentage above 0", param_hint="--steps")
    return value
