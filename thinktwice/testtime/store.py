"""Test-time parameters on disk: ``test_time.json`` (configuration, how it was chosen) and ``counts.safetensors``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from thinktwice.errors import BundleError
from thinktwice.files import read_json, write_json
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.reliability import Reliability

TEST_TIME_FILE = "test_time.json"
FORMAT = 1


@dataclass(frozen=True)
class TestTime:
    """What ships with a model: the configuration, the counts, and the evidence of the choice (`report`)."""

    __test__ = False

    config: TestTimeConfig
    reliability: Reliability
    report: dict[str, Any]


def save_test_time(folder: Path | str, value: TestTime) -> None:
    """Write both files into an existing folder."""
    folder = Path(folder)
    value.reliability.save(folder)
    write_json(
        folder / TEST_TIME_FILE,
        {"format": FORMAT, "config": value.config.model_dump(mode="json"), "report": value.report},
    )


def load_test_time(folder: Path | str) -> TestTime:
    """Read test-time parameters.

    Raises:
        BundleError: a file is missing, damaged, or written by an unknown format.
    """
    path = Path(folder) / TEST_TIME_FILE
    try:
        value = read_json(path)
        if value["format"] != FORMAT:
            raise BundleError(f"{path} has format {value['format']}, this version reads {FORMAT}: fit it again")
        config = TestTimeConfig.model_validate(value["config"])
        report = value["report"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise BundleError(f"{path} cannot be read ({error}): fit the test-time parameters again") from error
    return TestTime(config, Reliability.load(folder), report)
