"""Replacement of the live routes: validated before the rename, confirmed after it, undone if Envoy refuses them."""

from __future__ import annotations

import fcntl
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.gateway.admin import CLUSTER_STATS, ROUTE_STATS, Admin
from serving.gateway.file import Declared, check_certificates
from serving.gateway.probe import Probed, probe_arms
from thinktwice.errors import ExperimentError, ServerError
from thinktwice.experiment.bootstrap import bootstrap, inlined
from thinktwice.experiment.door import secret_files
from thinktwice.experiment.gateway_config import GatewayConfig
from thinktwice.experiment.route_check import TrafficSplit, check_routes, read_split
from thinktwice.experiment.routes import CLUSTERS, ROUTES, Json, Rendered, render
from thinktwice.files import atomic_file

CONFIRM_LIMIT = 10.0  # seconds for Envoy to load a file, which takes a few milliseconds
WARM_LIMIT = 15.0  # seconds for the first health checks of new clusters
POLL = 0.02


@dataclass(frozen=True)
class Live:
    """The live files in a gateway's folder."""

    routes: bytes
    clusters: bytes
    split: TrafficSplit
    serial: int


@dataclass(frozen=True)
class Reloaded:
    """Result of a reload."""

    version: str
    probes: tuple[Probed, ...]


def read_live(folder: Path) -> Live | None:
    """The live files, None if there are none.

    Raises:
        ExperimentError: they have another version, or were not written by a gateway.
    """
    routes, clusters = folder / ROUTES, folder / CLUSTERS
    if not routes.is_file():
        return None
    try:
        contents = routes.read_bytes(), clusters.read_bytes()
        split = read_split(*contents)
    except FileNotFoundError:
        raise ExperimentError(
            f"{folder} contains routes without clusters: remove {routes} and start the gateway"
        ) from None
    except ExperimentError as error:
        raise ExperimentError(
            f"{routes}: {error}. Another version of thinktwice wrote it, or it was edited by hand: start with an empty folder if no experiment runs"
        ) from error
    version = json.loads(contents[0])["version_info"]
    return Live(*contents, split, _serial(version))


def plan(declared: Declared, folder: Path, envoy: Path | None) -> Rendered:
    """Render the files of a gateway file and check that they may replace the live files.

    Args:
        envoy: Envoy that also validates the files; None to skip this.

    Raises:
        ExperimentError: a rule is violated, or Envoy refuses the files.
    """
    live = read_live(folder)
    rendered = render(
        declared.experiments,
        declared.endpoints,
        declared.file,
        live.serial + 1 if live else 1,
        declared.secret,
        declared.tokens,
    )
    files = dict(rendered.files())
    split = live.split if live else None
    check_routes(files[ROUTES], files[CLUSTERS], declared.experiments, split, declared.tokens)
    if envoy is not None:
        check_certificates(declared.file)
        _ask_envoy(envoy, declared, rendered)
    return rendered


def reload(
    declared: Declared, folder: Path, envoy: Path | None, admin: Admin, probe: str, wait: float = 0.0
) -> Reloaded:
    """Replace the live routes by those of a gateway file. Requests in progress are not affected.

    Args:
        probe: secret of the gateway's probe requests.
        wait: seconds for another reload to end.

    Raises:
        ExperimentError: the files are refused, by our rules or by Envoy; the old ones stay live.
        ServerError: Envoy does not respond, or another reload is in progress.
    """
    with lock(folder / "reload.lock", "another reload of this gateway is in progress: wait for it", wait):
        rendered = plan(declared, folder, envoy)
        live = read_live(folder)
        if live is None:
            raise ServerError(f"{folder} contains no live routes: start the gateway with `thinktwice gateway run`")
        try:
            _put_clusters(folder, _union(live, rendered), admin)
            _put_routes(folder, rendered, admin)
            probes = probe_arms(declared, folder, probe)
        except BaseException:  # Ctrl-C too
            _restore(folder, live)
            raise
        _put_clusters(
            folder, rendered.clusters, admin
        )  # only now, because the old routes refer to the removed clusters
        return Reloaded(str(admin.route_version()), probes)


def write(folder: Path, rendered: Rendered, config: GatewayConfig | None = None) -> None:
    """Write the files when no Envoy is running; with ``config`` also the paths of its certificates."""
    for name, secret in (secret_files(config) if config is not None else {}).items():
        _write(folder / name, (json.dumps(secret, indent=1) + "\n").encode())
    for name, content in rendered.files():
        _write(folder / name, content)


@contextmanager
def lock(path: Path, problem: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock that ends with this process.

    Raises:
        ServerError: another process has it; the message is ``problem``.
    """
    with path.open("a") as handle:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= end:
                    raise ServerError(problem) from error
                time.sleep(POLL)
        yield


def _ask_envoy(envoy: Path, declared: Declared, rendered: Rendered) -> None:
    """Validate with Envoy, on a single inlined file, because its validation does not open files referenced by the bootstrap."""
    with tempfile.TemporaryDirectory(prefix="tt-gateway-") as name:
        inlined_file = Path(name) / "whole.json"
        inlined_file.write_text(
            json.dumps(inlined(bootstrap(declared.file), rendered, declared.file)), encoding="utf-8"
        )
        command = [str(envoy), "--mode", "validate", "-c", str(inlined_file), "--reject-unknown-dynamic-fields"]
        result = subprocess.run(
            [*command, "--log-level", "error"], cwd=name, capture_output=True, text=True, timeout=60
        )
    if result.returncode:
        lines = [line for line in (result.stderr + result.stdout).splitlines() if line.strip()]
        raise ExperimentError(f"Envoy refuses the rendered files: {(lines or ['no reason given'])[-1][:400]}")


def _union(live: Live, rendered: Rendered) -> Json:
    """The new clusters and the old ones to be removed, which the old routes refer to until the new ones are live."""
    names = {cluster["name"] for cluster in rendered.clusters["resources"]}
    removed = [c for c in json.loads(live.clusters)["resources"] if c["name"] not in names]
    return {**rendered.clusters, "resources": [*rendered.clusters["resources"], *removed]}


def _put_clusters(folder: Path, clusters: Json, admin: Admin) -> None:
    path = folder / CLUSTERS
    if json.loads(path.read_bytes())["resources"] == clusters["resources"]:
        return
    before = admin.stats()
    _write(path, (json.dumps(clusters, indent=1) + "\n").encode())
    _taken(admin, CLUSTER_STATS, before, "clusters")
    # A route may refer to a new cluster only after its first health checks.
    _until(
        lambda: admin.stats().get("cluster_manager.warming_clusters", 0) == 0, WARM_LIMIT, "new clusters are not ready"
    )


def _put_routes(folder: Path, rendered: Rendered, admin: Admin) -> None:
    if json.loads((folder / ROUTES).read_bytes())["resources"] == rendered.routes["resources"]:
        return  # Envoy would keep its current version
    before = admin.stats()
    _write(folder / ROUTES, dict(rendered.files())[ROUTES])
    _taken(admin, ROUTE_STATS, before, "routes")
    _until(lambda: admin.route_version() == rendered.version, CONFIRM_LIMIT, f"version {rendered.version} is not live")


def _taken(admin: Admin, prefix: str, before: dict[str, int], kind: str) -> None:
    """Wait until Envoy has loaded a file.

    Raises:
        ExperimentError: Envoy refuses the file.
    """

    def loaded() -> bool:
        now = admin.stats()
        for counter in ("update_rejected", "update_failure", "update_empty"):
            if now.get(f"{prefix}.{counter}", 0) > before.get(f"{prefix}.{counter}", 0):
                raise ExperimentError(
                    f"Envoy refuses the new {kind} ({counter}), the old ones stay live: see envoy.log"
                )
        return now.get(f"{prefix}.update_success", 0) > before.get(f"{prefix}.update_success", 0)

    _until(loaded, CONFIRM_LIMIT, f"it has not taken the new {kind}")


def _until(condition: object, limit: float, problem: str) -> None:
    assert callable(condition)
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise ServerError(
                f"Envoy does not follow within {limit:g} s ({problem}), the old files are live: see envoy.log"
            )
        time.sleep(POLL)


def _restore(folder: Path, live: Live) -> None:
    """Restore the live files, routes first: they refer only to old clusters, which all still exist."""
    for name, content in ((ROUTES, live.routes), (CLUSTERS, live.clusters)):
        if (folder / name).read_bytes() != content:
            _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path, mode=0o600) as temporary:  # routes may contain the secret that forces an arm
        temporary.write_bytes(content)


def _serial(version: str) -> int:
    part = version.split("-")[1]
    return int(part) if part.isascii() and part.isdigit() else 0
