"""The software bill of materials of an image lists exactly the pins of the lock that are in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.container.test_requirements import ROOT, printed

SCRIPT = ROOT / "images" / "sbom.py"


def bill(pins: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--pins", str(pins), "--name", "x-python", "--version", "1.2.3", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("image", ["predictor", "pipeline"])
def test_every_pin_is_a_component(image: str, tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text(printed(ROOT / "requirements.lock", "--image", image).stdout)
    done = bill(pins)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert [f"{c['name']}=={c['version']}" for c in found["components"]] == sorted(pins.read_text().split())
    references = [c["bom-ref"] for c in found["components"]]
    assert len(set(references)) == len(references) and all(r.startswith("pkg:pypi/") for r in references)
    assert found["dependencies"] == [{"ref": "x-python", "dependsOn": references}]
    licensed = [c for c in found["components"] if c.get("licenses")]
    assert len(licensed) > 0.9 * len(references)
    assert found["metadata"]["component"] == {
        "type": "container", "bom-ref": "x-python", "name": "x-python", "version": "1.2.3",
    }  # fmt: skip
    assert bill(pins).stdout == done.stdout  # reproducible


def test_what_is_not_listed_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("torch==2.13.0+cu130\nzope_x.y==1\n")
    plain, cuda = (json.loads(bill(tmp_path / "r.txt", *more).stdout) for more in ([], ["--cuda"]))
    assert [c["purl"] for c in plain["components"]] == ["pkg:pypi/torch@2.13.0%2Bcu130", "pkg:pypi/zope-x.y@1"]
    said = [found["metadata"]["properties"][0]["value"] for found in (plain, cuda)]
    assert said == ["packages of the base image", f"{said[0]} and packages that the CUDA build of torch adds"]
    assert plain["compositions"] == cuda["compositions"] == [{"aggregate": "incomplete", "assemblies": ["x-python"]}]


def test_no_pins_and_two_pins_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n")
    assert "no pins" in bill(tmp_path / "none.txt").stderr
    (tmp_path / "two.txt").write_text("Zope_x==1\nzope-x==2\n")
    done = bill(tmp_path / "two.txt")
    assert (done.returncode, done.stdout) == (1, "") and "has two pins" in done.stderr


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch==", "torch==2.*"])
def test_a_line_that_is_not_a_pin_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text(f"numpy==2.4.6\n{line}\n")
    done = bill(tmp_path / "r.txt")
    assert done.returncode == 1 and "is not a pin" in done.stderr


@pytest.mark.parametrize("file", ["pipeline.Containerfile", "predictor.Containerfile"])
def test_the_image_contains_its_bill_and_its_labels(file: str) -> None:
    text = (ROOT / "images" / file).read_text()
    assert "\nCOPY sbom.json /opt/sbom.json\n" in text and "\nUSER 1000:1000\n" in text
    build = (ROOT / "images" / "build.sh").read_text()
    assert "images/sbom.py" in build
    for label in ("title", "version", "revision", "licenses", "base.name"):
        assert f"org.opencontainers.image.{label}=" in build
