"""The built wheel: installed into an empty environment over the locked packages, it imports and explains every command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("thinktwice", "feature_repo", "components", "pipelines", "serving", "demo")

#: Runs in the new environment: every command's --help, and what `import thinktwice` loads.
CHECK = """
import json, sys
import thinktwice
loaded = [name for name in ("torch", "numpy", "pydantic", "pyarrow", "polars", "yaml") if name in sys.modules]
import contextlib, io, typer
from thinktwice.cli import app, main
def walk(command, path=()):
    yield path
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from walk(command.get_command(None, name), (*path, name))
helped = {}
for path in walk(typer.main.get_command(app)):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main([*path, "--help"])
    helped[" ".join(path)] = [status, "Usage:" in out.getvalue()]
names = {name: getattr(thinktwice, name).__module__ for name in thinktwice.__all__ if name != "__version__"}
origins = {name: sys.modules[name].__file__ for name in %r if name in sys.modules}
print(json.dumps({"loaded": loaded, "helped": helped, "names": names, "origins": origins}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_what_the_packages_read(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert "thinktwice/py.typed" in names
    suffixes = {".py", ".yaml", ".html", ".css", ".svg", ".xml", ".properties"}
    here = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.suffix in suffixes and "golden" not in path.parts
    }
    assert here - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert "Requires-Dist: torch>=2.13\n" in metadata


def test_it_works_from_an_empty_environment(wheel: Path, tmp_path: Path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    # The locked packages come after the environment's own, by path alone: no .pth file of theirs runs, so the installation
    # from the sources (an editable one) is not seen.
    (site / "locked.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*install, "--python", str(python), str(wheel)], check=True, capture_output=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-c", CHECK % (PACKAGES,)], cwd=tmp_path, env={**clean, "COLUMNS": "100"}, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == []
    assert {"thinktwice", "feature_repo", "pipelines", "serving"} <= set(found["origins"])
    assert all(Path(origin).is_relative_to(environment) for origin in found["origins"].values()), found["origins"]
    assert found["helped"] and all(answer == [0, True] for answer in found["helped"].values()), found["helped"]
    assert {"score", "pipeline run", "data ingest", "release verify"} <= set(found["helped"])
    assert found["names"]["score_table"] == "thinktwice.scoring"
    version = subprocess.run(
        [str(environment / "bin" / "thinktwice"), "--version"], env=clean, capture_output=True, text=True
    )
    assert version.stdout.strip() == wheel.name.split("-")[1]
