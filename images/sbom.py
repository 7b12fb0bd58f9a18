"""Prints the software bill of materials (SBOM) of an image as CycloneDX 1.6 JSON: every pinned Python package with its licence.

    .venv/bin/python images/sbom.py --pins requirements.txt --name thinktwice-python --version 0.1.0 > sbom.json

``--pins`` is the output of ``requirements.py``, so the same lock gives the same bytes. Licences are those that the metadata of the installed packages
names, so run it with the Python of the environment that was installed from the lock. The packages of the base image are not listed, and those that a
CUDA build of torch adds (``--cuda``) are not either; the SBOM says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

NAMESPACE = uuid.UUID("5b0b6f9e-0d0c-4b52-9f1c-7a7c1a0c5a11")  # of the serial numbers
NOT_LISTED = "packages of the base image"
CUDA = " and packages that the CUDA build of torch adds"


def bill(pins: list[str], name: str, version: str, *, cuda: bool = False) -> dict[str, Any]:
    """The SBOM of an image with these pins (``name==version``).

    Args:
        cuda: torch comes from another index, with packages that the lock does not name.

    Raises:
        SystemExit: a line is not a pin, or a package has two pins.
    """
    if not pins:
        raise SystemExit("no pins: give the output of images/requirements.py")
    components = []
    for pin in sorted(pins):
        package, equals, release = pin.partition("==")
        if not (package and equals and release) or any(c in release for c in " ;<>*"):
            raise SystemExit(f"{pin!r} is not a pin: write NAME==VERSION")
        url = f"pkg:pypi/{package.lower().replace('_', '-')}@{quote(release, safe='')}"
        if any(url.partition("@")[0] == other["purl"].partition("@")[0] for other in components):
            raise SystemExit(f"{package} has two pins")
        components.append(
            {"type": "library", "bom-ref": url, "name": package, "version": release, "purl": url, **_licences(package)}
        )
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, f'{name}@{version} ' + ' '.join(sorted(pins)))}",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": name, "name": name, "version": version},
            "properties": [{"name": "thinktwice:not-listed", "value": NOT_LISTED + (CUDA if cuda else "")}],
        },
        "compositions": [{"aggregate": "incomplete", "assemblies": [name]}],
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": [component["bom-ref"] for component in components]}],
    }


def _licences(package: str) -> dict[str, Any]:
    try:
        found = metadata(package)
    except PackageNotFoundError:
        return {}
    if expression := found.get("License-Expression"):
        return {"licenses": [{"expression": expression}]}
    text = (found.get("License") or "").strip()
    classified = [c.rpartition(" :: ")[2] for c in found.get_all("Classifier") or [] if c.startswith("License :: ")]
    names = classified or ([text] if 0 < len(text) <= 64 and "\n" not in text else [])
    return {"licenses": [{"license": {"name": each}} for each in names]} if names else {}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pins", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--cuda", action="store_true")
    given = parser.parse_args()
    json.dump(bill(given.pins.read_text().split(), given.name, given.version, cuda=given.cuda), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
