"""TorchServe as a child process on loopback: start, wait until a worker has scored, stop all processes."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from serving.adapters.java_queue import PORT as QUEUE_PORT
from serving.adapters.torchserve_worker import WHILE_LOADING, interpreter_file
from serving.config import VARIABLE, ServingConfig, load_config
from serving.local.java import find_java
from serving.local.processes import (
    HOST,
    START_LIMIT,
    STOP_LIMIT,
    LocalServer,
    Progress,
    alive,
    check_port,
    free_ports,
    scored,
    send_signal,
    start_child,
)
from thinktwice.errors import ServerError
from thinktwice.interrupts import guarded, interruptible
from thinktwice.release.archive import HANDLER, MODEL_NAME
from thinktwice.release.release import Staged, stage
from thinktwice.release.signing import trusted_keys

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # as in :mod:`serving.telemetry.metrics`, which is not imported because it starts counting on import
# A small heap and one compiler tier: the JVM only forwards bytes, and starts faster this way. A small, pre-touched young generation:
# collections under load then pause for at most 8 ms instead of 70.
JVM = "-Xms64m -Xmx768m -XX:NewSize=16m -XX:+AlwaysPreTouch -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
MAIN_CLASS = "org.pytorch.serve.ModelServer"
ABOVE = 1 << 16  # bytes by which a body may exceed the limit and still be refused by the service, with a message
LOG_CONFIG = Path(__file__).with_name("log4j2.xml")
PLAIN = re.compile(r"[A-Za-z0-9/._+-]*")  # a path that needs no escaping anywhere
MAX_SOCKET_PATH = (
    80  # TorchServe creates Unix sockets in its temporary folder, and their paths are limited to about 100 characters
)


@dataclass
class TorchServe(LocalServer):
    """A running server. Created by :func:`running`."""

    name = "TorchServe"

    work: Path
    management: Path  # socket of the management interface
    metrics_url: str = ""
    known: list[psutil.Process] = field(default_factory=list)


@contextmanager
def running(
    archive: Path,
    *,
    feature_store: Path | None,
    port: int,
    log: Path,
    config: ServingConfig | None = None,
    limit: float = START_LIMIT,
    progress: Progress = lambda text: None,
    handler: str = HANDLER,
) -> Iterator[TorchServe]:
    """Serve a model archive while the block runs. It is checked before Java starts, and Java gets a private, unpacked copy.

    The server is ready when a worker has answered a request. On exit, also by Ctrl-C or SIGTERM, the Java process and all
    workers have ended.

    Args:
        archive: a ``.mar`` file, with ``release.json`` next to it if it was deployed.
        feature_store: feature store folder, None for a model without one.
        port: of the inference API on 127.0.0.1; the other APIs take free ports.
        log: file for the server's output; replaced.
        config: settings of the worker; default: those named in the environment; the metrics take a free port.
        limit: maximum seconds for the start.
        progress: called with the current stage.
        handler: handler module; one other than ours (in benchmarks) runs in TorchServe's own worker.

    Raises:
        ServerError: Java is missing, the port is in use, the archive is missing, or the worker does not start.
        BundleError: the archive or its release is refused.
    """
    with interruptible():
        if not archive.is_file():
            raise ServerError(f"model archive {archive} does not exist: run the pipeline to package and deploy a model")
        check_port(port)
        java_home = find_java()
        work = _work_folder()
        try:
            config = config or load_config()
            (work / "models").mkdir()
            model = stage(
                archive, feature_store, work / "models" / MODEL_NAME, config.release, trusted_keys(), handler=handler
            )
            own = handler == HANDLER
            with guarded(lambda: _launch(model, port, log, java_home, work, config, own_worker=own), stop) as server:
                _wait_until_scored(server, limit, progress)
                _remember_processes(server)  # the workers would lose their parent if Java died
                yield server
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _work_folder() -> Path:
    """A folder for the server. Its path is short enough for a socket and needs no escaping, because two parsers read it from the properties file."""
    work = Path(tempfile.mkdtemp(prefix="tt-serve-"))
    if len(str(work)) > MAX_SOCKET_PATH or not PLAIN.fullmatch(str(work)):
        work.rmdir()
        work = Path(tempfile.mkdtemp(prefix="tt-serve-", dir="/tmp"))
    return work


def stop(server: TorchServe, limit: float = STOP_LIMIT) -> None:
    """Stop the server and wait until Java and all workers have ended.

    Java closes the connections of queued and running requests, so they are finished first: until the queue is empty and the only
    worker has answered a request that was sent after all of them.
    """
    _remember_processes(server)
    end = time.monotonic() + limit
    while _pending(server) and time.monotonic() < end:
        time.sleep(0.05)
    scored(server.predict_url, limit=max(1.0, end - time.monotonic()))
    # The launcher ends by itself when Java, its only child, has ended, and Java ends its workers.
    for process in server.known[1:2]:
        send_signal(process, signal.SIGTERM)
    if not _wait_gone(server, limit):
        for process in server.known:
            send_signal(process, signal.SIGKILL)
        server.process.kill()
        _wait_gone(server, 5.0)
    if server.process.stdin is not None:
        server.process.stdin.close()


def configuration(
    model: Path,
    settings: ServingConfig,
    *,
    port: int,
    management: Path,
    metrics_port: int,
    grpc_ports: tuple[int, int],
) -> str:
    """Content of ``config.properties``: everything on loopback, only the folder ``model`` can be loaded, and the management interface,
    which can remove workers, on a socket that only this user can access."""
    properties = {
        "inference_address": f"http://{HOST}:{port}",
        "management_address": f"unix:{management}",
        "metrics_address": f"http://{HOST}:{metrics_port}",
        "grpc_inference_address": HOST,
        "grpc_inference_port": grpc_ports[0],
        "grpc_management_address": HOST,
        "grpc_management_port": grpc_ports[1],
        "model_store": model.parent,
        "load_models": f"{MODEL_NAME}={model.name}",
        "allowed_urls": f"file://{model.parent}/.*",
        "disable_token_authorization": "true",
        "enable_model_api": "false",
        "enable_envvars_config": "false",
        "decode_input_request": "false",  # the handler decodes the body, once and strictly
        "install_py_dep_per_model": "false",
        "disable_system_metrics": "true",
        "metrics_mode": "prometheus",
        "default_workers_per_model": 1,
        "number_of_netty_threads": 2,
        "job_queue_size": max(settings.queue, 1),
        "max_request_size": settings.max_body_bytes + ABOVE,
    }
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _launch(
    model: Staged,
    port: int,
    log: Path,
    java_home: Path,
    work: Path,
    settings: ServingConfig,
    *,
    own_worker: bool,
) -> TorchServe:
    metrics, worker_metrics, *grpc = free_ports(4)
    config = work / "config.properties"
    management = work / "management"
    config.write_text(
        configuration(
            model.folder,
            settings,
            port=port,
            management=management,
            metrics_port=metrics,
            grpc_ports=(grpc[0], grpc[1]),
        ),
        encoding="utf-8",
    )
    (work / "tmp").mkdir()
    (work / "metrics").mkdir()
    settings = settings.model_copy(update={"metrics_port": worker_metrics, "metrics_host": HOST})
    (work / "serving.yaml").write_text(json.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    # A TS_ variable in the environment would override the file above.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TS_")}
    environment |= {
        "JAVA_HOME": str(java_home),
        "TEMP": str(work / "tmp"),
        "TMPDIR": str(work / "tmp"),
        "LOG_LOCATION": str(work),
        "METRICS_LOCATION": str(work),
        VARIABLE: str(work / "serving.yaml"),
        "TS_OPEN_INFERENCE_PROTOCOL": "oip",  # answers /v2/health
        "TS_DECODE_INPUT_REQUEST": "false",  # the handler decodes the body, once and strictly
        MULTIPROCESS: str(work / "metrics"),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        QUEUE_PORT: str(free_ports(1, socket.SOCK_DGRAM)[0]),
    }
    environment.pop("THINKTWICE_FEATURE_STORE", None)
    if model.feature_store is not None:
        environment["THINKTWICE_FEATURE_STORE"] = str(model.feature_store.resolve())
    command = [
        sys.executable,
        "-m",
        "serving.local.launcher",
        *_front_end(java_home, work, config, own_worker),
    ]
    process = start_child(command, log, environment, cwd=work)
    metrics_url = f"http://{HOST}:{worker_metrics}/metrics"
    return TorchServe(port=port, log=log, process=process, work=work, management=management, metrics_url=metrics_url)


def _front_end(java_home: Path, work: Path, config: Path, own_worker: bool) -> list[str]:
    """Command of TorchServe's front end."""
    (package_dir,) = importlib.util.find_spec("ts").submodule_search_locations  # type: ignore[union-attr, misc]
    home = Path(package_dir).parent
    command = [str(java_home / "bin" / "java"), *JVM.split()]
    command += [f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={work / 'tmp'}"]
    command += [f"-Dlog4j.configurationFile=file://{LOG_CONFIG}", "-cp", f".:{home}/ts/frontend/*", MAIN_CLASS]
    command += ["--python", str(interpreter_file(work / "worker.sh")) if own_worker else sys.executable]
    return [*command, "-f", str(config), "-ncs", "--disable-token-auth"]


def _wait_until_scored(server: TorchServe, limit: float, progress: Progress) -> None:
    start = time.monotonic()
    stage = ""
    while (elapsed := time.monotonic() - start) < limit:
        server.check()
        _raise_if_worker_failed(server)
        status = _worker_status(server)
        if status == "READY" and scored(server.predict_url):
            server.seconds_to_ready = time.monotonic() - start
            return
        stage = {None: "starting Java", "READY": "asking the worker"}.get(status, "the worker loads the model")
        progress(f"{stage} ({elapsed:.0f} s)")
        time.sleep(0.1 if elapsed < 30 else 0.5)
    raise ServerError(
        f"TorchServe did not score a request within {limit:.0f} seconds (last seen: {stage or 'nothing'}): see {server.log}"
    )


def _raise_if_worker_failed(server: TorchServe) -> None:
    text = server.output()
    if WHILE_LOADING in text or "Failed to load model" in text:
        raise ServerError(f"the worker died while it loaded the model: see {server.log}")
    if "Address already in use" in text or "Failed to bind" in text:
        raise ServerError(f"port {server.port} of {HOST} was taken while the server started: set another with --port")


def _worker_status(server: TorchServe) -> str | None:
    try:
        workers = _described(server)["workers"]
    except KeyError:
        return "LOADING"
    except (OSError, ValueError, IndexError):
        return None
    return workers[0]["status"] if workers else "LOADING"


def _pending(server: TorchServe) -> int:
    """Number of requests in Java's queue; 0 if unknown."""
    try:
        return int(_described(server)["jobQueueStatus"]["pendingRequests"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def _described(server: TorchServe) -> dict[str, Any]:
    status, answer = manage(server, "GET", f"/models/{MODEL_NAME}")
    if status != 200:
        raise KeyError(MODEL_NAME)
    description: dict[str, Any] = json.loads(answer)[0]
    return description


def manage(server: TorchServe, method: str, path: str, limit: float = 2.0) -> tuple[int, bytes]:
    """Send a request to the management interface. Returns status and body of the response.

    Raises:
        OSError: the interface does not respond.
    """
    connection = http.client.HTTPConnection(HOST, timeout=limit)
    connection.sock = socket.socket(socket.AF_UNIX)
    with closing(connection):
        connection.sock.settimeout(limit)
        connection.sock.connect(str(server.management))
        connection.request(method, path)
        try:
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error


def _remember_processes(server: TorchServe) -> None:
    try:
        launcher = psutil.Process(server.process.pid)
        processes = [launcher, *launcher.children(recursive=True)]
    except psutil.NoSuchProcess:
        processes = []
    server.known += [p for p in processes if p not in server.known]


def _wait_gone(server: TorchServe, limit: float) -> bool:
    end = time.monotonic() + limit
    while True:
        _remember_processes(server)  # a worker may have been started meanwhile
        # The child is polled last: only its own poll ensures that it has been waited for.
        if not any(alive(p) for p in server.known) and server.process.poll() is not None:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
