"""The evaluation of a training run: plain, pre-trained and test-time work compared on the same test rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.errors import BundleError
from thinktwice.evaluate import STAGE, slices
from thinktwice.evaluate.evaluation import CurvePoint, DataFacts, PartFacts, TrainingEvaluation
from thinktwice.evaluate.extra_work import extra_work, fitting_rows, subsample, subsample_index
from thinktwice.evaluate.findings.baselines import Fitting, fitting_baselines
from thinktwice.evaluate.findings.measure import Shipped, findings
from thinktwice.evaluate.measure import ScoreColumn, measure, operating_point
from thinktwice.evaluate.report import render
from thinktwice.evaluate.thought_twice import thought_twice
from thinktwice.evaluate.tidy import TABLE_FILE, to_csv
from thinktwice.evaluate.verdict import verdict_lines
from thinktwice.files import atomic_dir, write_json
from thinktwice.progress import note, track
from thinktwice.release.bundle import EVALUATION_FILE, REPORT_FILE
from thinktwice.selection.trial_model import TrialModel
from thinktwice.selection.trunks import Trunk, Trunks, open_trunks
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.report import TestTimeReport, TrunkName
from thinktwice.testtime.scores import Raw
from thinktwice.testtime.store import TestTime, load_test_time, read_report
from thinktwice.threads import reproducible

TIMINGS_FILE = "timings.json"
TRUNK_WORDS: dict[TrunkName, str] = {"plain": "plain", "pretrained": "pre-trained"}
OFF = TestTimeConfig()


@dataclass(frozen=True)
class EvaluatedRun:
    """The evaluation of a training run: the content of ``evaluation.json``, and timings, which are not part of it.

    ``timings`` (column -> measured time against one plain pass) and ``candidate_timings`` (the same by candidate) differ from
    run to run. They come from ``cost.json``, the only file of a bundle that contains measured times.
    """

    content: TrainingEvaluation
    timings: dict[str, float]
    candidate_timings: dict[str, float]

    def write(self, out_dir: Path | str) -> None:
        """Write ``evaluation.json``, ``evaluation.csv``, ``report.html`` and ``timings.json``."""
        with atomic_dir(out_dir) as folder:
            self.content.write(folder / EVALUATION_FILE)
            (folder / TABLE_FILE).write_text(to_csv(self.content), encoding="utf-8", newline="")
            write_json(folder / TIMINGS_FILE, {"time_ratio": self.timings, "candidates": self.candidate_timings})
            (folder / REPORT_FILE).write_text(render(self.content), encoding="utf-8")


@reproducible()
def evaluate(
    training_set_dir: Path | str,
    plain_dir: Path | str,
    pretrained_dir: Path | str | None,
    test_time_dir: Path | str,
    out_dir: Path | str,
) -> EvaluatedRun:
    """Open everything once, :func:`compare` it and write the result.

    Raises:
        DataError: the training set is missing or damaged.
        BundleError: a model or the test-time parameters are missing or damaged.
    """
    data, trunks = load_training_set(training_set_dir), open_trunks(plain_dir, pretrained_dir)
    trunk = read_report(test_time_dir).trunk
    if trunk not in trunks:
        raise BundleError(
            f"test-time parameters in {test_time_dir} belong to the {trunk} model, which was not passed: pass it, or fit them again"
        )
    run = compare(data, trunks, load_test_time(test_time_dir, trunks[trunk].model))
    run.write(out_dir)
    note(STAGE, run.content.verdict[0])
    return run


@reproducible()
def compare(data: TrainingSet, trunks: Trunks, test_time: TestTime) -> EvaluatedRun:
    """Score the test rows with every model and compare them in pairs; nothing is written.

    The column ``test_time`` is the best candidate on the chosen trunk, shipped or not, as fitted on validation; nothing is
    chosen on test rows.

    Args:
        test_time: parameters chosen for one of ``trunks``.

    Raises:
        BundleError: the test-time parameters were set, not chosen.
    """
    report = test_time.report
    if report is None:
        raise BundleError("the test-time parameters have no report of how they were chosen: fit them again")
    with fitting_baselines(data) as fitting:
        return _compared(data, trunks, test_time, report, fitting)


def _compared(
    data: TrainingSet, trunks: Trunks, test_time: TestTime, report: TestTimeReport, fitting: Fitting
) -> EvaluatedRun:
    trunk = report.trunk
    test = data.part_with_evidence("test")
    rows = data.rows("test")
    subjects = {
        name: TrialModel(
            opened.model,
            opened.info.calibration,
            test_time.reliability,
            test_time.extras if name == trunk else Extras(),
        )
        for name, opened in trunks.items()
    }
    if (counting := test_time.counter_trunk) is not None:
        reliability = test_time.reliability.resized(counting.model.num_fields)
        counter_model = TrialModel(counting.model, counting.calibration, reliability, Extras())
        subjects[trunk] = replace(subjects[trunk], counter_model=counter_model)
    scoring = track(subjects.items(), stage=STAGE, total=len(subjects), label="test rows")
    raw = {name: trial_model.raw(OFF, test) for name, trial_model in scoring}
    columns = [_column(name, TRUNK_WORDS[name], subjects[name], OFF, raw[name]) for name in trunks]
    scores_of = {OFF: raw[trunk]}
    costs = {} if test_time.costs is None else test_time.costs.candidates
    candidate_timings = {name: cost.value for name, cost in costs.items()}
    config = OFF if report.best is None else report.best
    if config not in scores_of:
        scores_of[config] = subjects[trunk].raw(config, test)
    label = (
        f"{TRUNK_WORDS[trunk]}, nothing to add" if report.best is None else f"{TRUNK_WORDS[trunk]} + {report.best_name}"
    )
    columns.append(_column("test_time", label, subjects[trunk], config, scores_of[config]))
    timings = {c.key: 1.0 for c in columns} | {"test_time": candidate_timings.get(report.best_name or "", 1.0)}
    shipped = "test_time" if report.accepted else trunk
    truth = rows["truth"].to_numpy() if "truth" in rows.columns else None
    measures = measure(
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
    ships_config = config if report.accepted else OFF
    found = findings(
        data,
        trunks,
        Shipped(subjects[trunk], ships_config, ships.logit, ships.passes),
        test,
        rows,
        test_time.reliability,
        fitting,
    )
    content = TrainingEvaluation(
        **dict(measures),
        format=TrainingEvaluation.FORMAT,
        shipped=shipped,
        trunk=trunk,
        mode=test_time.config.mode,
        test_time=report,
        extra_work=extra_work(
            subjects[trunk],
            report,
            test.take(index),
            fitting_rows(data, report),
            {name: mask[index] for name, mask in uncertain.items()},
            None if truth is None else truth[index],
            {config: subsample(scores, index) for config, scores in scores_of.items()},
        ),
        novelty=report.novelty,
        operating_point=operating_point(test.label, ships.probability, data.info.parts["train"].click_rate),
        data=data_facts(data),
        curves={name: curve for name, opened in trunks.items() if (curve := _curve(opened))},
        findings=found,
        verdict=tuple(verdict_lines(measures, report, shipped, found.headline)),
        thought_twice=None
        if report.best is None
        else thought_twice(
            subjects[trunk],
            config,
            scores_of[config],
            subjects[trunk].engine(OFF).finish(raw[trunk]).logit,
            test,
            candidate=report.best_name or "",
            ships=report.accepted,
        ),
    )
    return EvaluatedRun(content, timings, candidate_timings)


def _column(key: str, label: str, trial_model: TrialModel, config: TestTimeConfig, raw: Raw) -> ScoreColumn:
    scored = trial_model.engine(config).finish(raw)
    return ScoreColumn(key, label, scored.logit, scored.probability, 1 + scored.path_rows / len(raw.z))


def data_facts(data: TrainingSet) -> DataFacts:
    """Schema name, split, and size, click rate and window of every part."""
    parts = {
        name: PartFacts(rows=part.rows, click_rate=part.click_rate, window=part.window)
        for name, part in data.info.parts.items()
    }
    return DataFacts(schema=data.schema.name, split=data.info.split, parts=parts)


def _curve(trunk: Trunk) -> tuple[CurvePoint, ...]:
    """The evaluations on validation during a model's training, if there is a record of it."""
    return tuple(
        CurvePoint(epoch=p.epoch, train_logloss=p.train_logloss, valid_logloss=p.valid_logloss, valid_auc=p.valid_auc)
        for p in trunk.curve
    )
