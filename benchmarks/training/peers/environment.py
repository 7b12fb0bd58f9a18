"""The environment of a peer: made once, from pins, with the build of torch that this project runs on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from thinktwice.files import atomic_file, sha256_text

FOLDER = Path(__file__).parent
READY = ".ready"  # the hash of the pins that are installed


@dataclass(frozen=True)
class Peer:
    """A library from the package index: ``script`` trains with it, ``pins`` names its packages."""

    name: str
    script: str
    pins: str

    @property
    def packages(self) -> str:
        """The text of its pins."""
        return (FOLDER / self.pins).read_text(encoding="utf-8")

    @property
    def version(self) -> str:
        """Its own pin."""
        return next(line for line in self.packages.splitlines() if line.startswith(f"{self.name.lower()}=="))


PEERS = {
    peer.name: peer
    for peer in (
        Peer("FuxiCTR", "run_fuxictr.py", "fuxictr.txt"),
        Peer("DeepCTR-Torch", "run_deepctr.py", "deepctr.txt"),
        Peer("torch-rechub", "run_rechub.py", "rechub.txt"),
    )
}


def python_of(peer: Peer, work: Path) -> Path:
    """The Python of a peer's environment, which is made if it is not there.

    Raises:
        SystemExit: a package cannot be installed, or torch is another build than ours: times and results would not compare.
    """
    folder = work / "environments" / f"{peer.name}-torch-{torch.__version__}"
    python, ready = folder / "bin" / "python", folder / READY
    pins = sha256_text(peer.packages)
    if ready.is_file() and ready.read_text(encoding="utf-8") == pins:
        return python
    print(f"{peer.name}: making its environment", flush=True)
    if not _torch(python):
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        index = os.environ.get("TORCH_INDEX", "")
        wanted = f"torch=={torch.__version__.partition('+')[0]}"
        _run([str(python), "-m", "pip", "install", "--quiet", *(["--index-url", index] if index else []), wanted])
    if _torch(python) != (ours := f"{torch.__version__} {torch.version.cuda}"):
        raise SystemExit(
            f"{peer.name} has torch {_torch(python)} and we have {ours}: set TORCH_INDEX to the same index"
        )
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", str(python)]
    _run([*install, "--requirement", str(FOLDER / peer.pins)])
    with atomic_file(ready) as temporary:
        temporary.write_text(pins, encoding="utf-8")
    return python


def _torch(python: Path) -> str:
    """Version of an environment's torch and of its CUDA; empty without torch."""
    if not python.is_file():
        return ""
    command = [str(python), "-c", "import torch; print(torch.__version__, torch.version.cuda)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
