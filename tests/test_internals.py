"""docs/internals-we-rely-on.md lists every private name of another library that this code touches (:mod:`tests.internals`), each with
a test that notices a change. What no other test notices is checked here, against the installed libraries."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import socket
import subprocess
import sys
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components.step import IMAGE
from pipelines.local_remains import EXECUTOR_OUTPUT
from serving.adapters.torchserve_protocol import LOAD, PREDICT, Load, Predict, Reader, answer, loaded
from tests.internals import ROOT, dotted_name, last, lines, private, scan, scans, uses
from tests.serving.front_end import load, predict
from thinktwice.errors import ResourceError
from thinktwice.imports import without_typeguard
from thinktwice.query import engine
from thinktwice.schema.fields import RESERVED

# The libraries' own, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_private_name_of_another_library_has_a_line() -> None:
    known = {(path, last(line.name)) for line in lines() for path in line.files}
    listed = {name for _, name in known if private(name)}
    missing = sorted(set(uses(scans(), listed)) - known)
    assert missing == [], (
        "touched, but not in docs/internals-we-rely-on.md: use something public, or add a line and a test"
    )


def test_every_line_is_true() -> None:
    assert len(lines()) > 30, "the tables could not be read"
    tests = {
        path: (ROOT / path).read_text("utf-8") for path in {t.split("::")[0] for line in lines() for t in line.tests}
    }
    for line in lines():
        assert line.files and line.tests, f"{line.name} names no file or no test"
        for path in line.files:
            text = (ROOT / path).read_text("utf-8")
            found = line.name in text or (private(last(line.name)) and last(line.name) in text)
            assert found, f"{path} does not touch {line.name} any more"
        for name in line.tests:
            path, _, function = name.partition("::")
            assert f"def {function}(" in tests[path], f"{line.name}: there is no test {name}"


@pytest.mark.parametrize(
    "code",
    [
        "from feast.infra import _helper",
        "from kfp._private import thing",
        "import kserve as k\nk._hidden()",
        "import atexit\natexit._run_exitfuncs()",
        "def f(store):\n    return store._get_secret()",
        "def f(store):\n    return getattr(store, '_secret', None)",
        "from kfp.local import cache\ncache.get_local_cache = print",
        "import kfp\nsetattr(kfp.local, 'init', print)",
        "NAME = 'torch.onnx._secret.logger'",
        "from kfp.local.cache import LocalCache\nclass C(LocalCache):\n    def _entry_path(self, key): ...",
    ],
)
def test_the_scan_sees(code: str) -> None:
    assert list(uses((scan("serving/new.py", code),), set()))


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(1)",
        "from serving import requests\nrequests._plain",
        "def f(row):\n    return row._replace(a=1)",
        "class C:\n    def __init__(self): self._x = 1\n    def same(self, other): return other._x",
        "from torch import nn\nclass C(nn.Module):\n    def _ours(self): ...",
        "import pandas as pd\nNAME = 'a._b'",
    ],
)
def test_the_scan_does_not_see(code: str) -> None:
    assert list(uses((scan("serving/new.py", code),), set())) == []


def source(module: str) -> str:
    """The text of an installed module, which is not imported (its parent packages are not either)."""
    package, *rest = module.split(".")
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None, f"{package} is not installed"
    path = Path(found.origin).parent.joinpath(*rest)
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


@pytest.mark.parametrize("module", ["feast.entity", "feast.feature_view", "feast.data_source", "feast.feature_service"])
def test_feast_takes_typechecked_by_name(module: str) -> None:
    text = source(module)
    assert "from typeguard import typechecked\n" in text and "\n@typechecked\n" in text


def test_typechecked_is_replaced_during_the_import_alone() -> None:
    import typeguard

    before = typeguard.typechecked
    with without_typeguard():
        plain: Any = typeguard.typechecked
        assert plain(str) is str and plain(always=True)(str) is str
    assert typeguard.typechecked is before


def test_feast_adds_the_columns_that_are_reserved() -> None:
    text = source("feast.infra.offline_stores.ibis")
    assert {"entity_row_id", "rn"} < RESERVED
    assert "entity_row_id=" in text and '["rn"]' in text


@pytest.mark.parametrize(
    ("called", "module"),
    [
        ("execute_single_task", "task_executor"),
        ("get_local_cache", "cache_module"),
        ("run_local_subprocess", "subprocess_task_handler"),
    ],
)
def test_kfp_calls_what_we_replace_through_its_module(called: str, module: str) -> None:
    """A caller that had imported the function by name would go on calling KFP's own."""
    from kfp import local

    calls = 0
    for path in Path(local.__file__).parent.rglob("*.py"):
        if path.name.endswith("_test.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert called not in {alias.name for alias in node.names}, f"{path.name} imports {called} by name"
            if isinstance(node, ast.Call) and dotted_name(node.func).split(".")[-1] == called:
                own = path.stem == module and dotted_name(node.func) == called
                assert own or dotted_name(node.func) == f"{module}.{called}", path.name
                calls += 1
                if called == "execute_single_task":
                    read = {"task_name", "task_spec", "components", "io_store", "pipeline_root"}
                    assert node.args == [] and read <= {keyword.arg for keyword in node.keywords}
    assert calls > 0


def test_kfp_still_names_the_output_of_a_step() -> None:
    assert f"'{EXECUTOR_OUTPUT}'" in source("kfp.local.executor_input_utils")


def test_kfp_still_marks_the_process_of_a_step() -> None:
    assert "_KFP_RUNTIME=true python3 -m {EXECUTOR_MODULE}" in source("kfp.dsl.component_factory")


def test_kfp_runs_a_step_of_our_image_as_a_process() -> None:
    from kfp.local.subprocess_task_handler import SubprocessTaskHandler

    validate = partial(SubprocessTaskHandler.validate_image, SubprocessTaskHandler.__new__(SubprocessTaskHandler))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate(IMAGE)
    with pytest.warns(RuntimeWarning, match="non-Python base image"):
        validate("registry.example.com/ads/thinktwice:1")


def test_the_sdk_of_kserve_does_not_read_our_command_line() -> None:
    words = ["--http_port", "not a number", "--model_name", "other"]
    code = (
        f"import sys; sys.argv[1:] = {words!r}; import serving.adapters.kserve_server; print(sys.argv[1:] == {words!r})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert "parser.parse_known_args()" in source("kserve.model_server"), "the SDK needs no empty command line any more"


def test_torch_still_has_the_logger() -> None:
    text = source("torch.onnx._internal.exporter._registration")
    assert "logger = logging.getLogger(__name__)" in text and "torchvision" in text


TORCHSERVE_PYTHON = {
    "Backend received inference at": "ts.protocol.otf_message_handler",
}
TORCHSERVE_JAVA = {
    "Failed to load model": "ModelServer",
    "Failed to bind": "ModelServer",
    "[PID]": "WorkerLifeCycle$ReaderThread",
    "Torch worker started.": "WorkerLifeCycle$ReaderThread",
    "Waiting time ns": "RestJob",
    "MODEL_LOG": "WorkerLifeCycle$ReaderThread",
    "ACCESS_LOG": "NettyUtils",
    "TS_METRICS": "LogMetric",
    "MODEL_METRICS": "LogMetric",
    "jobQueueStatus": "DescribeModelResponse",
    "pendingRequests": "DescribeModelResponse$JobQueueStatus",
    "TS_OPEN_INFERENCE_PROTOCOL": "ConfigManager",
    "TS_DECODE_INPUT_REQUEST": "ConfigManager",
    "decode_input_request": "ConfigManager",
    "enable_envvars_config": "ConfigManager",
    "LOG_LOCATION": "ConfigManager",
    "METRICS_LOCATION": "ConfigManager",
    "model_server_home": "ConfigManager",
}


def test_torchserve_still_says_and_reads() -> None:
    """Constants of its Python modules and Java classes: a text that is worded anew, or a setting that was renamed."""
    assert [text for text, module in TORCHSERVE_PYTHON.items() if text not in source(module)] == []
    spec = importlib.util.find_spec("ts")
    assert spec is not None and spec.origin is not None
    (jar,) = (Path(spec.origin).parent / "frontend").glob("model-server.jar")
    with zipfile.ZipFile(jar) as archive:
        classes = {Path(name).stem: name for name in archive.namelist() if name.startswith("org/pytorch/serve/")}
        assert classes["ModelServer"] == "org/pytorch/serve/ModelServer.class"
        assert classes["RestJob"] == "org/pytorch/serve/job/RestJob.class", "its logger has another name"
        gone = [text for text, name in TORCHSERVE_JAVA.items() if text.encode() not in archive.read(classes[name])]
    assert gone == []


def test_duckdb_names_a_full_disk(tmp_path: Path) -> None:
    """The device accepts nothing, which is what a full disk looks like."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(ResourceError, match="no space left while writing"), engine(tmp_path) as connection:
        connection.execute(
            "COPY (SELECT range AS i FROM range(100000)) TO '/dev/full' (FORMAT csv, USE_TMP_FILE false)"
        )


def test_torchserve_reads_messages_as_our_worker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, read by TorchServe's own reader and by ours; and answers, written by both."""
    from ts.protocol.otf_message_handler import create_load_model_response, create_predict_response, retrieve_msg

    class Context:
        """As much of TorchServe's context as its writer reads."""

        stopping_criteria = None

        def get_response_status(self, index: int) -> tuple[int, str]:
            return 503, "Service Unavailable"

        def get_response_content_type(self, index: str) -> str:
            return "application/json"

        def get_response_headers(self, index: int) -> dict[str, str]:
            return {"content-type": "application/json", "retry-after": "5"}

    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")  # as we start it
    headers = {"content-type": "application/json", "retry-after": "5"}
    theirs = create_predict_response([b'{"error": ""}'], {0: "id-1"}, "", 200, Context())
    assert bytes(theirs) == answer(b"id-1", 503, "Service Unavailable", headers, b'{"error": ""}')
    assert bytes(create_load_model_response(200, "loaded")) == loaded()
    sent = (
        load("ctr", "/models/ctr"),
        predict(b"id-1", {b"X-Deadline-Ms": b"5"}, [(b"body", b"application/json", b"{}")]),
    )
    read = []
    for reader_of in (lambda end: partial(retrieve_msg, end), lambda end: Reader(end).read):
        front, end = socket.socketpair()
        with front, end:
            front.sendall(b"".join(sent))
            next_message = reader_of(end)
            read.append([next_message(), next_message()])
    (theirs_load, theirs_predict), ours = read
    assert theirs_load[0] == LOAD and theirs_predict[0] == PREDICT
    assert ours[0] == Load(theirs_load[1]["modelName"].decode(), theirs_load[1]["modelPath"].decode())
    (one,) = theirs_predict[1]
    found = {bytes(header["name"]): bytes(header["value"]) for header in one["headers"]}
    (body,) = one["parameters"]
    assert ours[1] == Predict(bytes(one["requestId"]), found, bytes(body["value"]))


def test_uvicorn_calls_what_we_override() -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    text = inspect.getsource(HttpToolsProtocol)
    callbacks = {"on_message_begin", "on_headers_complete", "on_body", "on_message_complete"}
    assert callbacks | {"send_400_response", "_unsupported_upgrade_warning"} <= set(vars(HttpToolsProtocol))
    assert "self._unsupported_upgrade_warning()" in text and "self.send_400_response(" in text
    assert "httptools.HttpRequestParser(self)" in text, "the parser calls the protocol itself, by these names"


def test_exit_functions_run_when_a_process_leaves_at_once() -> None:
    code = "import atexit; atexit.register(print, 'flushed'); from serving.exits import leave_after; leave_after(lambda: 7)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (7, "flushed"), done.stderr
