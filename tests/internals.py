"""The scan for private names of other libraries, and the page that lists them (docs/internals-we-rely-on.md).

It reads the syntax trees of all tracked Python files and finds

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
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "internals-we-rely-on.md"
PACKAGES = ("thinktwice", "feature_repo", "components", "pipelines", "serving", "demo")
OURS = {*PACKAGES, "tests", "benchmarks", "images", "__main__"}
DOCUMENTED = {
    "_asdict",
    "_replace",
    "_fields",
    "_make",
    "_exit",
}  # of named tuples and of os, in spite of the underscore
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}
DOTTED = re.compile(r"[A-Za-z]\w*(\.\w+)*\._\w+(\.\w+)*")


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
    if name in DOCUMENTED or origin.split(".")[0] in OURS:
        return
    out.touched.add((name, bool(origin)))


def inherited(base: str) -> set[str]:
    """Private names that the source of a base class, and of its own bases, uses of itself."""
    module, _, name = base.rpartition(".")
    if module.startswith("kserve"):  # the SDK reads the command line at import; this module hides it
        importlib.import_module("serving.adapters.kserve_server")
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
