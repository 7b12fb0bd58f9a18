"""Test-time parameters on disk: ``test_time.json`` (configuration, report of its choice), ``counts.safetensors``, and files of
some modes: ``combinations.safetensors``, ``heads.safetensors``, ``members/0``, ``members/1``, ``correction.safetensors``,
``retrieval.safetensors`` and ``neighbours.safetensors``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from thinktwice.calibration import Calibration
from thinktwice.combinations.counts import COMBINATIONS_FILE, CombinationCounts
from thinktwice.errors import BundleError, reason
from thinktwice.files import read_json, sha256_file
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import MODEL_FILES, WEIGHTS_FILE, ModelInfo, load_model, write_model
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.cost import COST_FILE, CostFile, load_costs
from thinktwice.testtime.evidence.correction import CORRECTION_FILE, CorrectionNetwork
from thinktwice.testtime.evidence.retrieval import NEIGHBOURS_FILE, RETRIEVAL_FILE, Retrieval
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.format_2 import from_format_2
from thinktwice.testtime.heads import HEADS_FILE, FieldHeads
from thinktwice.testtime.reliability import COUNTS_FILE, Reliability
from thinktwice.testtime.report import TestTimeReport
from thinktwice.versioned import ResultFile

TEST_TIME_FILE = "test_time.json"
MEMBER_FOLDERS = ("members/0", "members/1")
COUNTER_FOLDER = (
    "counter_trunk"  # the trunk with counters; its files are the model of a bundle in the mode ``counters``
)
TEST_TIME_FILES = (TEST_TIME_FILE, COUNTS_FILE)
# Files of some modes; only those that the configuration needs are shipped (:func:`needed_files`).
EXTRA_FILES = (
    COMBINATIONS_FILE,
    HEADS_FILE,
    CORRECTION_FILE,
    RETRIEVAL_FILE,
    NEIGHBOURS_FILE,
    *(f"{folder}/{name}" for folder in MEMBER_FOLDERS for name in MODEL_FILES),
)


class TestTimeFile(ResultFile):
    """Content of ``test_time.json``; see :class:`TestTime`."""

    __test__ = False  # not a test, despite the name

    FORMAT: ClassVar[int] = 3

    config: TestTimeConfig
    report: TestTimeReport | None
    weights: Annotated[str, Field(max_length=64)]

    @field_validator("report", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """Some files of formats 2 and 3 have an empty report."""
        return None if value == {} else value


@dataclass(frozen=True, eq=False)
class CounterTrunk:
    """The trunk that also reads counters, and its calibration."""

    model: Backbone
    calibration: Calibration


@dataclass(frozen=True)
class TestTime:
    """Test-time parameters of a model: the configuration, the counts, the ``report`` of its choice (None if the configuration
    was set, not chosen), and extras.

    ``weights`` is the SHA-256 of the weights that the counts belong to; "" if not recorded. ``costs`` are the measured costs of
    what was tried; None if nothing was measured. ``counter_trunk`` is the model of the mode ``counters``, if it was tried.
    """

    __test__ = False

    config: TestTimeConfig
    reliability: Reliability
    report: TestTimeReport | None
    extras: Extras = field(default_factory=Extras)
    weights: str = ""
    costs: CostFile | None = None
    counter_trunk: CounterTrunk | None = None


def save_test_time(folder: Path | str, value: TestTime, model: Backbone | None = None) -> None:
    """Write all files into an existing folder. A member that shares the table of ``model`` is written without a table.

    Raises:
        BundleError: there are more members than a bundle may contain.
    """
    folder = Path(folder)
    if len(value.extras.members) > len(MEMBER_FOLDERS):
        raise BundleError(
            f"{len(value.extras.members)} further trunks cannot be written: a bundle contains at most {len(MEMBER_FOLDERS)}, "
            "drop the others"
        )
    value.reliability.save(folder)
    if value.costs is not None:
        value.costs.write(folder / COST_FILE)
    if value.extras.combinations is not None:
        value.extras.combinations.save(folder)
    if value.extras.heads is not None:
        value.extras.heads.save(folder)
    if value.extras.correction is not None:
        value.extras.correction.save(folder)
    if value.extras.retrieval is not None:
        value.extras.retrieval.save(folder)
    for name, member in zip(MEMBER_FOLDERS, value.extras.members, strict=False):
        shared = model is not None and member.embedding.table is model.embedding.table
        (folder / name).mkdir(parents=True)
        write_model(folder / name, member, ModelInfo(stage="finetuned"), with_table=not shared)
    weights = value.weights
    if value.counter_trunk is not None:
        (folder / COUNTER_FOLDER).mkdir(parents=True)
        info = ModelInfo(stage="finetuned", calibration=value.counter_trunk.calibration)
        write_model(folder / COUNTER_FOLDER, value.counter_trunk.model, info)
        if value.config.mode == "counters":
            weights = sha256_file(folder / COUNTER_FOLDER / WEIGHTS_FILE)
    content = TestTimeFile(format=TestTimeFile.FORMAT, config=value.config, report=value.report, weights=weights)
    content.write(folder / TEST_TIME_FILE)


def load_test_time(folder: Path | str, model: Backbone | None = None) -> TestTime:
    """Read test-time parameters; ``model`` provides the table of members that were written without one.

    Raises:
        BundleError: a file is missing, damaged, or of an unknown format.
    """
    folder = Path(folder)
    read = _read(folder)
    extras = Extras(
        CombinationCounts.load(folder) if (folder / COMBINATIONS_FILE).is_file() else None,
        FieldHeads.load(folder) if (folder / HEADS_FILE).is_file() else None,
        tuple(
            load_model(folder / name, table=None if model is None else model.embedding.table)[0]
            for name in MEMBER_FOLDERS
            if (folder / name).is_dir()
        ),
        CorrectionNetwork.load(folder) if (folder / CORRECTION_FILE).is_file() else None,
        Retrieval.load(folder) if (folder / RETRIEVAL_FILE).is_file() else None,
    )
    counter_trunk = None
    if (folder / COUNTER_FOLDER).is_dir():
        trunk, info = load_model(folder / COUNTER_FOLDER)
        counter_trunk = CounterTrunk(trunk, info.calibration)
    return TestTime(
        read.config, Reliability.load(folder), read.report, extras, read.weights, load_costs(folder), counter_trunk
    )


def read_config(folder: Path | str) -> TestTimeConfig:
    """The configuration; no other file is read.

    Raises:
        BundleError: it is missing, damaged, or of an unknown format.
    """
    return _read(Path(folder)).config


def read_report(folder: Path | str) -> TestTimeReport:
    """The report of how the configuration was chosen; no other file is read.

    Raises:
        BundleError: like :func:`read_config`, or the configuration was set, not chosen.
    """
    report = _read(Path(folder)).report
    if report is None:
        raise BundleError(
            f"{Path(folder) / TEST_TIME_FILE} has no report of how its configuration was chosen: "
            "fit the test-time parameters again"
        )
    return report


def _read(folder: Path) -> TestTimeFile:
    path, expected = folder / TEST_TIME_FILE, TestTimeFile.FORMAT
    try:
        value = read_json(path)
        if isinstance(value, dict) and type(version := value.get("format")) is int and version != expected:
            if version != 2:
                raise BundleError(f"{path} has format {version}, this version reads {expected} and 2: fit it again")
            value = from_format_2(value)
        return TestTimeFile.model_validate(value)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({reason(error)}): fit the test-time parameters again") from error


def needed_files(config: TestTimeConfig) -> tuple[str, ...]:
    """The files that ship with a configuration."""
    out = [*TEST_TIME_FILES]
    if config.correction is not None:
        out.append(CORRECTION_FILE)
    if config.second_look is None:
        return tuple(out)
    opinion = config.second_look.opinion
    if opinion.needs_combinations:
        out.append(COMBINATIONS_FILE)
    if opinion.needs_heads:
        out.append(HEADS_FILE)
    if opinion.needs_retrieval:
        out += [RETRIEVAL_FILE, NEIGHBOURS_FILE]
    for folder in MEMBER_FOLDERS[: opinion.num_members]:
        out += [f"{folder}/{name}" for name in MODEL_FILES]
    return tuple(out)
