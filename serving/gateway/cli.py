"""``thinktwice gateway``: check, render, run, reload and inspect a gateway."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktwice.console.options import WORK, Work
from thinktwice.console.output import Column, Record, print_table, say
from thinktwice.console.stop import on_stop
from thinktwice.console.terminal import console_here
from thinktwice.errors import ServerError
from thinktwice.printable import printable

if TYPE_CHECKING:
    from serving.gateway.probe import Probed

# The commands import what they need when they run: every start of the command line loads this file.

app = typer.Typer(help="Run the gateway: Envoy in front of the arms of an experiment.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="Gateway file (YAML).")]
FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="Folder of its files and logs.", show_default="gateway in the folder of --work"),
]
READY = "ready"  # first word of the line that `run` prints when the gateway answers
LOOK = 5.0  # seconds between checks of the log


@app.command("check")
def check(file: FileArgument, folder: FolderOption = None, work: Work = WORK) -> None:
    """Render the gateway's files and validate them, also with Envoy and against the running ones; nothing is written."""
    from serving.gateway.binary import find_envoy
    from serving.gateway.file import load_gateway
    from serving.gateway.reload import plan

    declared = load_gateway(file)
    try:
        envoy = find_envoy()
    except ServerError as error:
        envoy = None
        say(console_here(stderr=True), f"checked by our own rules alone: {error}")
    rendered = plan(declared, _folder(folder, work), envoy)
    typer.echo(f"{file}: {len(declared.experiments)} experiments, {len(declared.endpoints)} arms, {rendered.version}")


@app.command("render")
def render_files(
    file: FileArgument,
    out: Annotated[
        Path, typer.Option(help="Folder to write bootstrap.json, cds.json, rds.json (with TLS also sds-*.json) into.")
    ],
) -> None:
    """Write the files of an Envoy that runs elsewhere, validated against those that the folder already holds."""
    from serving.gateway.file import load_gateway
    from serving.gateway.process import BOOTSTRAP
    from serving.gateway.reload import plan, write
    from thinktwice.experiment.bootstrap import bootstrap
    from thinktwice.files import write_json

    declared = load_gateway(file)
    rendered = plan(declared, out, None)
    out.mkdir(parents=True, exist_ok=True)
    write(out, rendered, declared.file)
    write_json(out / BOOTSTRAP, bootstrap(declared.file))
    typer.echo(f"{out}: {rendered.version}")


@app.command("run")
def run(file: FileArgument, folder: FolderOption = None, work: Work = WORK) -> None:
    """Run Envoy on this machine until Ctrl-C.

    Prints one line "ready URL" when Envoy has its routes and a request to every arm went where the experiment file says.
    """
    from serving.gateway.file import load_gateway
    from serving.gateway.process import running

    declared = load_gateway(file)
    console = console_here(stderr=True)
    on_stop("gateway stopped")
    with (
        console.status("starting") as status,
        running(declared, _folder(folder, work), progress=status.update) as started,
    ):
        status.stop()
        scheme = "http" if declared.file.tls is None else "https"
        typer.echo(f"{READY} {scheme}://{declared.file.listen.host}:{declared.file.listen.port}")
        for sentence in _strange(started.probes):
            say(console, sentence)
        say(console, f"log {started.log}, access log next to it, stop with Ctrl-C")
        last_check = time.monotonic()
        while True:
            started.check()
            if time.monotonic() - last_check >= LOOK:
                last_check = time.monotonic()
                for sentence in started.look_at_log():
                    say(console, sentence)
            time.sleep(0.2)


@app.command("reload")
def reload_routes(file: FileArgument, folder: FolderOption = None, work: Work = WORK) -> None:
    """Apply the experiments and arms of the file to a running gateway; no request in flight is lost.

    When anything is wrong the old routes stay live, and the command ends with 1.
    """
    from serving.gateway.admin import running_admin
    from serving.gateway.binary import find_envoy
    from serving.gateway.file import load_gateway
    from serving.gateway.process import probe_token
    from serving.gateway.reload import reload

    declared, gateway_folder = load_gateway(file), _folder(folder, work)
    admin = running_admin(gateway_folder)
    reloaded = reload(declared, gateway_folder, find_envoy(), admin, probe_token(declared, gateway_folder))
    for sentence in _strange(reloaded.probes):
        say(console_here(stderr=True), sentence)
    typer.echo(f"live: {reloaded.version}")


@app.command("status")
def status(
    folder: FolderOption = None,
    work: Work = WORK,
    raw: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Print the experiments and arms of the running gateway, and the counts of its access logs."""
    from serving.gateway.access_log import access_logs, count_lines
    from serving.gateway.admin import running_admin
    from serving.gateway.reload import read_live

    gateway_folder = _folder(folder, work)
    admin = running_admin(gateway_folder)
    stats, version, live = admin.stats(), admin.route_version(), read_live(gateway_folder)
    counts = count_lines(access_logs(gateway_folder))
    failed = stats.get("filesystem.write_failed", 0)
    if raw:
        typer.echo(json.dumps({"version": version, "write_failed": failed, **counts.model_dump()}, indent=2))
        return
    console = console_here()
    say(console, f"routes {version}, {stats.get('http.in.downstream_cx_active', 0)} connections")
    if live is not None:
        names = ("buckets", "experiment", "arm", "enrolled")
        ranges = [
            Record((f"{r.start}–{r.stop - 1}", r.experiment, r.arm, "yes" if r.enrolled else "no"))
            for r in live.split.ranges
        ]
        print_table(console, [Column(name) for name in names], ranges)
    for name in ("requests", "answered", "refused", "failed", "fallbacks", "misnamed", "broken", "torn"):
        say(console, f"{name}: {getattr(counts, name)}")
    for name, number in (*counts.by_route.items(), *counts.by_arm.items()):
        say(console, f"{printable(name)}: {number}", indent=2)
    if failed:
        say(console, f"{failed} writes to the access log failed, their lines are lost: free disk space")


def _strange(probes: tuple[Probed, ...]) -> list[str]:
    """Sentences about arms whose users another arm serves."""
    return [
        f"{printable(probe.experiment)}/{printable(probe.arm)} does not answer: {probe.served or 'nobody'} serves its users"
        for probe in probes
        if probe.served != probe.arm
    ]


def _folder(folder: Path | None, work: Path) -> Path:
    return work / "gateway" if folder is None else folder
