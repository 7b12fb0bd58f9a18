"""Plain against pre-trained against test-time work, on the same test rows: the evaluation of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.errors import BundleError
from thinktwice.evaluate import slices
from thinktwice.evaluate.cost import wall_ratio
from thinktwice.evaluate.extra_work import extra_work, fitting_rows, subsample, subsample_index
from thinktwice.evaluate.measure import ScoreColumn, measure, operating_point
from thinktwice.evaluate.report import render
from thinktwice.evaluate.verdict import verdict_lines
from thinktwice.files import atomic_dir, write_json
from thinktwice.models.store import load_model
from thinktwice.progress import note
from thinktwice.release.bundle import EVALUATION_FILE, REPORT_FILE
from thinktwice.selection.trial_model import TrialModel
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Raw
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.store import load_test_time, read_report
from thinktwice.threads import reproducible
from thinktwice.train.record import TRAINING_FILE, FinetuneRecord
from thinktwice.versioned import read_result

STAGE = "evaluate"
TIMINGS_FILE = "timings.json"
TRUNK_WORDS = {"plain": "plain", "pretrained": "pre-trained"}
OFF = TestTimeConfig()


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: the content of ``evaluation.json``. ``shipped`` is the key of the column that a bundle holds.

    ``timings`` (column -> wall time against one pass) and ``candidate_timings`` (the same by candidate) differ from run to
    run. They stay out of the files that a bundle holds, so that the same inputs give the same bundle.
    """

    content: dict[str, Any]
    timings: dict[str, float]
    candidate_timings: dict[str, float]

    @property
    def shipped(self) -> str:
        return str(self.content["shipped"])

    @property
    def trunk(self) -> str:
        """``plain`` or ``pretrained``: whose weights ship."""
        return str(self.content["trunk"])

    @property
    def verdict(self) -> str:
        return str(self.content["verdict"][0])

    def metrics(self, key: str) -> dict[str, float | None]:
        """Metrics of one column."""
        return next(c["metrics"] for c in self.content["columns"] if c["key"] == key)


@reproducible()
def evaluate(
    training_set_dir: Path | str,
    plain_dir: Path | str,
    pretrained_dir: Path | str | None,
    test_time_dir: Path | str,
    out_dir: Path | str,
) -> Evaluation:
    """Score the test rows with every model, compare them in pairs, write ``evaluation.json``, ``report.html`` and ``timings.json``.

    The column ``test_time`` is the best candidate on the chosen trunk whether it ships or not, as it was fitted on
    validation; test rows choose nothing.

    Raises:
        DataError: the training set is missing or damaged.
        BundleError: a model or the test-time parameters are missing or damaged.
    """
    data = load_training_set(training_set_dir)
    test = data.part("test")
    rows = data.rows("test")
    trunks = {"plain": load_model(plain_dir)}
    if pretrained_dir is not None:
        trunks["pretrained"] = load_model(pretrained_dir)
    trunk = read_report(test_time_dir)["trunk"]
    if trunk not in trunks:
        raise BundleError(f"test-time parameters in {test_time_dir} belong to the {trunk} model, which was not given")
    test_time = load_test_time(test_time_dir, trunks[trunk][0])
    subjects = {
        name: TrialModel(
            model, info.calibration, test_time.reliability, test_time.extras if name == trunk else Extras()
        )
        for name, (model, info) in trunks.items()
    }
    raw = {name: trial_model.raw(OFF, test) for name, trial_model in subjects.items()}
    columns = [_column(name, TRUNK_WORDS[name], subjects[name], OFF, raw[name]) for name in trunks]
    known, walls = {OFF: raw[trunk]}, _walls(subjects[trunk], test_time.report, test)
    best, best_name = test_time.report["best"], test_time.report["best_name"]
    config = OFF if best is None else TestTimeConfig.model_validate(best)
    if config not in known:
        known[config] = subjects[trunk].raw(config, test)
    label = f"{TRUNK_WORDS[trunk]}, nothing to add" if best is None else f"{TRUNK_WORDS[trunk]} + {best_name}"
    columns.append(_column("test_time", label, subjects[trunk], config, known[config]))
    timings = {c.key: 1.0 for c in columns} | {"test_time": walls.get(best_name, 1.0)}
    shipped = "test_time" if test_time.report["accepted"] else trunk
    truth = rows["truth"].to_numpy() if "truth" in rows.columns else None
    content = measure(
        test.label.astype(np.float64),
        test.user,
        columns,
        slices.cold_start(data, rows),
        slices.scenarios(data.schema, rows),
        slices.support_deciles(test_time.reliability, test),
        truth,
    )
    ships = next(c for c in columns if c.key == shipped)
    index = subsample_index(test)
    uncertain = slices.uncertain(data, rows, test, test_time.reliability)
    content |= {
        "format": 1,
        "shipped": shipped,
        "trunk": trunk,
        "mode": test_time.config.mode,
        "test_time": test_time.report,
        "extra_work": extra_work(
            subjects[trunk],
            test_time.report,
            test.take(index),
            fitting_rows(data, test_time.report),
            {name: mask[index] for name, mask in uncertain.items()},
            None if truth is None else truth[index],
            {config: subsample(scores, index) for config, scores in known.items()},
        ),
        "novelty": test_time.report["novelty"],
        "operating_point": operating_point(test.label, ships.probability, data.info.parts["train"].click_rate),
        "data": data_facts(data),
        "curves": {
            name: curve
            for name, folder in (("plain", plain_dir), ("pretrained", pretrained_dir))
            if (curve := _curve(folder))
        },
    }
    content["verdict"] = verdict_lines(content)
    with atomic_dir(out_dir) as folder:
        write_json(folder / EVALUATION_FILE, content)
        write_json(folder / TIMINGS_FILE, {"wall_ratio": timings, "candidates": walls})
        (folder / REPORT_FILE).write_text(render(content), encoding="utf-8")
    note(STAGE, content["verdict"][0])
    return Evaluation(content, timings, walls)


def _column(key: str, label: str, trial_model: TrialModel, config: TestTimeConfig, raw: Raw) -> ScoreColumn:
    scored = trial_model.engine(config).finish(raw)
    return ScoreColumn(key, label, scored.logit, scored.probability, 1 + scored.path_rows / len(raw.z))


def _walls(trial_model: TrialModel, report: dict[str, Any], test: EncodedRows) -> dict[str, float]:
    """Wall time of every candidate against one plain pass."""
    base = trial_model.engine(OFF)
    engines = {c["name"]: trial_model.engine(TestTimeConfig.model_validate(c["config"])) for c in report["candidates"]}
    return {name: round(wall_ratio(engine, base, test), 2) for name, engine in engines.items()}


def data_facts(data: TrainingSet) -> dict[str, Any]:
    """Schema name, split, and size, click rate and window of every part."""
    info = data.info.model_dump(
        mode="json", include={"split": True, "parts": {"__all__": {"rows", "click_rate", "window"}}}
    )
    return {"schema": data.schema.name} | info


def _curve(folder: Path | str | None) -> list[dict[str, float]]:
    """Epoch, training and validation logloss of a model's training, if its folder has the record."""
    if folder is None or not (Path(folder) / TRAINING_FILE).is_file():
        return []
    record = read_result(Path(folder) / TRAINING_FILE, FinetuneRecord, BundleError, "train the model again")
    return [point.model_dump(exclude={"valid_auc"}) for point in record.curve]
