"""docs/internals-we-rely-on.md lists every private name of another library that this code touches, and the list is complete.

The scan reads the syntax trees of all tracked Python files and reports

* imports of private names and modules, and private dotted paths in strings (a logger, a patch target),
* private attributes of anything but ``self``, also by ``getattr`` and its relatives, that this project does not define,
* private methods and attributes of a base class from another library, used or replaced by a subclass here,
* attributes of another library's modules and classes that are replaced here.

It does not follow types. In the packages, a private name counts as ours only where its own file defines it; in tests and
benchmarks, where any file of the project does. A name that the page lists for one file must be listed for every other file
that touches it too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from components.step import IMAGE
from pipelines.local_remains import EXECUTOR_OUTPUT
from thinktwice.data.query import engine
from thinktwice.errors import ResourceError
from thinktwice.imports import without_typeguard
from thinktwice.schema.log import RESERVED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "internals-we-rely-on.md"
PACKAGES = ("thinktwice", "feature_repo", "components", "pipelines", "serving")
OURS = {*PACKAGES, "tests", "benchmarks", "images", "__main__"}
NAMEDTUPLE = {"_asdict", "_replace", "_fields", "_make"}  # documented, in spite of the underscore
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}
DOTTED = re.compile(r"[A-Za-z]\w*(\.\w+)*\._\w+(\.\w+)*")
# The libraries' own, when their modules are imported to look at base classes.
pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Line:
    """One row of a table of the page."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass
class Scan:
    """What one file imports, defines and touches."""

    path: str
    modules: dict[str, str] = field(default_factory=dict)  # local name -> dotted name of what was imported
    defined: set[str] = field(default_factory=set)
    touched: set[tuple[str, bool]] = field(default_factory=set)  # private name, surely of another library
    bases: list[tuple[str, set[str]]] = field(default_factory=list)  # base class, private names of a subclass


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def foreign(dotted: str) -> bool:
    """Whether a dotted name belongs to another library; the standard library is not one of them."""
    top = dotted.split(".")[0]
    return bool(top) and top not in OURS and top not in sys.stdlib_module_names


def root_of(node: ast.expr) -> str:
    """The leftmost name of ``a.b().c[0]``; "" when there is none."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def scan(path: str, text: str) -> Scan:
    tree, out = ast.parse(text), Scan(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                out.modules[alias.asname or top] = alias.name if alias.asname else top
                _import(out, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                out.modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                _import(out, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.defined.add(node.id)
        elif isinstance(node, ast.arg):
            out.defined.add(node.arg)
        elif _of_self(node) and isinstance(node.ctx, ast.Store):
            out.defined.add(node.attr)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _of_self(node):
            replaced = isinstance(node.ctx, ast.Store) and foreign(out.modules.get(root_of(node), ""))
            if private(node.attr) or replaced:
                _touch(out, node.value, node.attr)
        elif isinstance(node, ast.Call):
            function = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            match node.args:
                case [receiver, ast.Constant(value=str(name)), *_] if function in BY_NAME:
                    if private(name) or (function == "setattr" and foreign(_imported(out, receiver))):
                        _touch(out, receiver, name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if (
                DOTTED.fullmatch(node.value)
                and foreign(node.value)
                and importlib.util.find_spec(node.value.split(".")[0])
            ):
                out.touched.add((node.value, True))
        elif isinstance(node, ast.ClassDef):
            names = {n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
            names |= {n.attr for n in ast.walk(node) if _of_self(n)}
            for base in node.bases:
                whole = out.modules.get(root_of(base), "")
                if foreign(whole):
                    rest = dotted_name(base).partition(".")[2]
                    dotted = f"{whole}.{rest}" if rest else whole
                    out.bases.append((dotted, {name for name in names if private(name)}))
    return out


def _of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _imported(out: Scan, receiver: ast.expr) -> str:
    return out.modules.get(root_of(receiver), "")


def _import(out: Scan, dotted: str) -> None:
    if foreign(dotted) and any(private(part) for part in dotted.split(".")):
        out.touched.add((next(part for part in dotted.split(".") if private(part)), True))


def _touch(out: Scan, receiver: ast.expr, name: str) -> None:
    origin = _imported(out, receiver)
    if name in NAMEDTUPLE or (origin and not foreign(origin)):  # the standard library, or a module of ours
        return
    out.touched.add((name, bool(origin)))


def inherited(base: str) -> set[str]:
    """Private names that the source of a base class, and of its own bases, uses of itself."""
    module, _, name = base.rpartition(".")
    if module.startswith("kserve"):  # the SDK reads the command line at import; this module hides it
        importlib.import_module("serving.kserve_server")
    found: Any = getattr(importlib.import_module(module), name)
    out: set[str] = set()
    for one in inspect.getmro(found):
        if foreign(one.__module__):
            tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
            out |= {n.attr for n in ast.walk(tree) if _of_self(n)} | set(vars(one))
    return {n for n in out if private(n)}


@cache
def scans() -> tuple[Scan, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(scan(path, (ROOT / path).read_text("utf-8")) for path in sorted(set(listed.stdout.split())))


def uses(found: tuple[Scan, ...], listed: set[str]) -> Iterator[tuple[str, str]]:
    """File and name of everything that needs a line; ``listed`` names count everywhere."""
    defined_anywhere = set().union(*(one.defined for one in found))
    for one in found:
        ours = one.defined if one.path.startswith(PACKAGES) else defined_anywhere
        for name, surely in one.touched:
            if surely or name in listed or name not in ours:
                yield one.path, name
        for base, names in one.bases:
            for name in sorted(names & inherited(base)) if names else ():
                yield one.path, name


@cache
def lines() -> tuple[Line, ...]:
    """The rows of all tables of the page: name | where | why | noticed by."""
    out = []
    for row in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        if len(cells) == 4 and not set(cells[0]) <= {"-", ":"} and "`" in cells[0]:
            names, files, tests = (re.findall(r"`([^`]+)`", cells[i]) for i in (0, 1, 3))
            out += [Line(name, tuple(files), tuple(tests)) for name in names]
    return tuple(out)


def last(name: str) -> str:
    """The private part of a name as the page writes it, with its class or module before it."""
    return (
        name if DOTTED.fullmatch(name) and name in {n for s in scans() for n, _ in s.touched} else name.split(".")[-1]
    )


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
            assert last(line.name) in (ROOT / path).read_text("utf-8"), f"{path} does not touch {line.name} any more"
        for name in line.tests:
            path, _, function = name.partition("::")
            assert f"def {function}(" in tests[path], f"{line.name}: there is no test {name}"


@pytest.mark.parametrize(
    "code",
    [
        "from feast.infra import _helper",
        "from kfp._private import thing",
        "import kserve as k\nk._hidden()",
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
    ("called", "function"), [("execute_single_task", "task_executor"), ("get_local_cache", "cache_module")]
)
def test_kfp_calls_what_we_replace_through_its_module(called: str, function: str) -> None:
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
                assert dotted_name(node.func) == f"{function}.{called}", path.name
                calls += 1
                if called == "execute_single_task":
                    assert node.args == [] and "task_name" in {keyword.arg for keyword in node.keywords}
    assert calls > 0


def test_kfp_still_names_the_output_of_a_step() -> None:
    assert f"'{EXECUTOR_OUTPUT}'" in source("kfp.local.executor_input_utils")


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
    code = f"import sys; sys.argv[1:] = {words!r}; import serving.kserve_server; print(sys.argv[1:] == {words!r})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert "parser.parse_known_args()" in source("kserve.model_server"), "the SDK needs no empty command line any more"


def test_torch_still_has_the_logger() -> None:
    text = source("torch.onnx._internal.exporter._registration")
    assert "logger = logging.getLogger(__name__)" in text and "torchvision" in text


TORCHSERVE_PYTHON = {
    "Backend worker process died": "ts.model_service_worker",
    "Failed to load model": "ts.model_service_worker",
    "Backend received inference at": "ts.protocol.otf_message_handler",
    "TEMP": "ts.model_server",
}
TORCHSERVE_JAVA = {
    "Failed to bind": "ModelServer",
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
