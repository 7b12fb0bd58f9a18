"""The servers of all arms and the gateway in front of them, as child processes that follow ``arms.json``."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from serving.config import ServingConfig
from serving.gateway.admin import Admin, running_admin
from serving.gateway.binary import find_envoy
from serving.gateway.file import load_gateway
from serving.gateway.process import Gateway, probe_token, running
from serving.gateway.reload import lock, reload
from serving.local import kserve_process, torchserve_process
from serving.local.processes import HOST, LocalServer, free_ports
from thinktwice.errors import ExperimentError, ServerError
from thinktwice.experiment.file import CONTROL
from thinktwice.files import atomic_file
from thinktwice.hashing import FileEntry
from thinktwice.interrupts import Interrupts, interruptible
from thinktwice.release.archive import ARCHIVE_FILE
from thinktwice.release.feature_store import FEATURE_STORE, ONLINE_FILE, PUSHED
from thinktwice.release.release import Release, ReleasePolicy, read_release
from thinktwice.release.rollout import ServedArm
from thinktwice.release.rollout_local import EXPERIMENTS, LocalArms, read_arms

GATEWAY_FILE, GATEWAY, SERVED, LOGS = "gateway.yaml", "gateway", "served", "logs"
RELOAD_LIMIT = 60.0  # seconds for another reload to end
ServerKind = Literal["torchserve", "kserve"]


class ArmServer:
    """The server of one arm, started and stopped in a thread of its own, so that arms start side by side.

    Args:
        config: settings, with the arm's name.
        store: feature store folder; None for a model without one.
    """

    def __init__(
        self, arm: ServedArm, kind: ServerKind, config: ServingConfig, store: Path | None, log: Path, limit: float
    ) -> None:
        self.arm, self.store, self.port = arm, store, free_ports(1)[0]
        self._stop, self._ready = threading.Event(), threading.Event()
        self._problem: BaseException | None = None
        self._server: LocalServer | None = None
        module: Any = torchserve_process if kind == "torchserve" else kserve_process
        archive = Path(arm.where) / ARCHIVE_FILE
        self._running = lambda: module.running(
            archive, feature_store=store, port=self.port, log=log, config=config, limit=limit
        )
        self._thread = threading.Thread(target=self._run, name=f"arm-{arm.name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until it has scored.

        Raises:
            ServerError, BundleError: it does not start.
        """
        while not self._ready.wait(0.1):
            pass  # in short steps, so that Ctrl-C is seen
        self.check()

    def check(self) -> None:
        """Raise its error, or a ServerError if it has ended by itself."""
        if self._problem is not None:
            raise self._problem
        if self._server is not None:
            self._server.check()

    @property
    def failed(self) -> bool:
        """Whether it could not start, or has ended by itself with an error."""
        return self._problem is not None

    def stop(self) -> None:
        """Finish requests in progress and end. Returns at once; :meth:`join` waits."""
        self._stop.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._running() as self._server:
                self._ready.set()
                self._stop.wait()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._problem = error
        finally:
            self._ready.set()


class ArmServers:
    """All servers of the local roll-out; a context manager. Not thread-safe.

    Args:
        folder: of the local roll-out (``arms.json``); logs are written below it.
        port: of the gateway on 127.0.0.1.
        config: settings of every server; the arm and the folder of its prediction log are added.
        settings: further settings of the gateway file.
        progress: called with what is being waited for.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        config: ServingConfig,
        *,
        kind: ServerKind = "torchserve",
        settings: dict[str, Any] | None = None,
        start_limit: float = 180.0,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self.port = folder.resolve(), port
        self._config, self._kind, self._settings = config, kind, settings or {}
        self._limit, self._progress = start_limit, progress
        self._servers: dict[str, ArmServer] = {}
        self._prepared: dict[str, ArmServer] = {}
        self._ending: list[ArmServer] = []
        self._followed: LocalArms | None = None
        self._coverage: tuple[bytes, ...] = ()
        self._stack = ExitStack()
        self._interrupts = Interrupts()
        self.gateway: Gateway | None = None

    def __enter__(self) -> ArmServers:
        try:
            find_envoy()
            self._interrupts = self._stack.enter_context(interruptible())
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"the arms of {self.folder} are served already: stop that process, or set another --work"
            self._stack.enter_context(lock(self.folder / "servers.lock", name))
            self.follow()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def url(self) -> str:
        """Address of the gateway."""
        return f"http://{HOST}:{self.port}"

    def ports(self) -> dict[str, int]:
        """Ports of the servers by arm (``control``, ``EXPERIMENT/ARM``)."""
        return {name: server.port for name, server in self._servers.items()}

    def prepare(self, *arms: ServedArm) -> None:
        """Start the servers of arms that an experiment will soon have, beside the present control. Waits only for servers that are ending.

        :meth:`follow` takes them over. Those that were prepared before and not taken over end.
        """
        current = read_arms(self.folder)
        for server in self._prepared.values():
            self._end(server)
        self._join_ended()
        self._prepared = {arm.name: self._start(arm, current) for arm in arms}

    def follow(self) -> bool:
        """Make servers and gateway what ``arms.json`` says. Returns whether anything changed.

        New servers score before the gateway routes to them; old ones end after it has stopped. It does not wait for that.

        Raises:
            ServerError, BundleError, ExperimentError: a server or the gateway does not start, or the routes are refused.
        """
        wanted = read_arms(self.folder)
        coverage = self._experiment_files(wanted)
        if wanted == self._followed:
            return coverage != self._coverage and self._follow_coverage(coverage)
        if not wanted.arms:
            raise ServerError(f"{self.folder} serves no arms: `thinktwice experiment start FILE` does")
        self._join_ended()
        old = dict(self._servers)
        for arm in wanted.arms:
            if arm.name not in old or old[arm.name].arm != arm:
                self._servers[arm.name] = self._taken(arm, wanted) or self._start(arm, wanted)
        names = {arm.name for arm in wanted.arms}
        for name in set(self._servers) - names:
            del self._servers[name]
        try:
            for name, server in self._servers.items():
                self._progress(f"waiting for {name}")
                server.wait()
            self._write_gateway(wanted)
            self._route()
        except BaseException:
            for name, server in self._servers.items():
                if old.get(name) is not server:
                    self._end(server)
            self._servers = old
            raise
        self._followed, self._coverage = wanted, coverage
        for name, server in old.items():
            if self._servers.get(name) is not server:
                self._end(server)
        return True

    def check(self) -> None:
        """Raise an error if a server or Envoy has ended by itself."""
        for server in self._servers.values():
            server.check()
        if self.gateway is not None:
            self.gateway.check()

    def _experiment_files(self, wanted: LocalArms) -> tuple[bytes, ...]:
        return tuple((self.folder / EXPERIMENTS / f"{name}.yaml").read_bytes() for name in wanted.experiments)

    def _follow_coverage(self, coverage: tuple[bytes, ...]) -> bool:
        """Reload the routes after a change of the coverage; False if another process does that now, and it is looked at again."""
        try:
            reload_gateway(self.folder)
        except ServerError:
            self.check()
            return False
        except ExperimentError:
            self._coverage = coverage  # refused: the old routes stay live until the file changes again
            raise
        self._coverage = coverage
        return True

    def _start(self, arm: ServedArm, wanted: LocalArms) -> ArmServer:
        label = arm.name.replace("/", ".")
        logged = self._config.prediction_log.model_copy(update={"folder": str(self.folder / SERVED / label)})
        config = self._config.model_copy(
            update={"arm": arm.name.rpartition("/")[2], "prediction_log": logged, "metrics_port": 0}
        )
        log = self.folder / LOGS / f"{label}-{arm.bundle_hash[:8]}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        return ArmServer(arm, self._kind, config, _store(arm, wanted), log, self._limit)

    def _taken(self, arm: ServedArm, wanted: LocalArms) -> ArmServer | None:
        """The prepared server of an arm; None if it is of another version, reads another store, or has failed."""
        server = self._prepared.pop(arm.name, None)
        if server is None or (server.arm == arm and server.store == _store(arm, wanted) and not server.failed):
            return server
        self._end(server)
        return None

    def _end(self, server: ArmServer) -> None:
        """End a server that no route leads to."""
        server.stop()
        self._ending.append(server)

    def _join_ended(self) -> None:
        """Wait for the servers that are ending, before others take their memory."""
        for server in self._ending:
            server.join()
        self._ending = []

    def _write_gateway(self, wanted: LocalArms) -> None:
        content = {
            "version": 1,
            "listen": f"{HOST}:{self.port}",
            "experiments": [f"{EXPERIMENTS}/{name}.yaml" for name in wanted.experiments],
            "arms": {arm.name: [f"{HOST}:{self._servers[arm.name].port}"] for arm in wanted.arms},
            **self._settings,
        }
        with atomic_file(self.folder / GATEWAY_FILE) as temporary:  # JSON is YAML
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _route(self) -> None:
        if self.gateway is not None:
            reload_gateway(self.folder)
            return
        declared = load_gateway(self.folder / GATEWAY_FILE)
        self.gateway = self._stack.enter_context(running(declared, self.folder / GATEWAY, progress=self._progress))

    def _close(self) -> None:
        self._interrupts.held += 1
        self._stack.close()  # the gateway first: it finishes requests
        for server in (*self._servers.values(), *self._prepared.values()):
            self._end(server)
        self._join_ended()


def reload_gateway(folder: Path) -> None:
    """Give the running gateway of a roll-out its files again; does nothing if none runs.

    Raises:
        ExperimentError, ServerError: the routes are refused; the old ones stay live.
    """
    admin = _admin(folder / GATEWAY)
    if admin is None:
        return
    declared = load_gateway(folder / GATEWAY_FILE)
    token = probe_token(declared, folder / GATEWAY)
    # A roll-back is never refused because an earlier change is still being applied.
    reload(declared, folder / GATEWAY, find_envoy(), admin, token, wait=RELOAD_LIMIT)


def _admin(folder: Path) -> Admin | None:
    try:
        return running_admin(folder)
    except ServerError:
        return None


def _store(arm: ServedArm, wanted: LocalArms) -> Path | None:
    """The feature store of an arm. Arms with the files of control's store share it, so that feedback reaches all of them."""
    own, control = Path(arm.where), next(Path(a.where) for a in wanted.arms if a.name == CONTROL)
    accepted, base = (read_release(folder, ReleasePolicy(), ()) for folder in (own, control))
    if accepted is None:  # of an earlier version, without a description
        return own / FEATURE_STORE if (own / FEATURE_STORE).is_dir() else None
    if not accepted.release.feature_service:
        return None
    shared = base is not None and _files(accepted.release) == _files(base.release)
    return (control if shared else own) / FEATURE_STORE


def _files(release: Release) -> dict[str, FileEntry]:
    """Files of a feature store that do not change while it is served."""
    files = release.feature_store or {}
    return {name: entry for name, entry in files.items() if name != ONLINE_FILE or PUSHED not in files}
