"""Evaluation of finished bundles on the test rows of a training set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thinktwice.data.training_set import load_training_set
from thinktwice.evaluate import slices
from thinktwice.evaluate.compare import data_facts
from thinktwice.evaluate.evaluation import Evaluation
from thinktwice.evaluate.from_bundle import evidence_of_test, score_bundle
from thinktwice.evaluate.measure import measure
from thinktwice.evaluate.report import render
from thinktwice.evaluate.tidy import TABLE_FILE, to_csv
from thinktwice.evaluate.verdict import compared
from thinktwice.files import atomic_dir
from thinktwice.release.bundle import EVALUATION_FILE, REPORT_FILE, Bundle, load_bundle
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.threads import reproducible


@reproducible()
def evaluate_bundles(
    bundle_dir: Path | str,
    training_set_dir: Path | str,
    against_dir: Path | str | None = None,
    out_dir: Path | str | None = None,
) -> Evaluation:
    """The evaluation of one bundle, or of one against another; written to ``out_dir`` if set.

    Raises:
        DataError: the training set is missing or damaged.
        BundleError: a bundle is missing or damaged.
        SchemaError: the rows do not fit a bundle.
    """
    data = load_training_set(training_set_dir)
    rows = data.rows("test")
    bundle = load_bundle(bundle_dir)
    column, encoded = score_bundle(
        bundle, rows, key="bundle", label=_name(bundle), evidence=evidence_of_test(bundle, data)
    )
    columns = [column]
    if against_dir is not None:
        baseline = load_bundle(against_dir)
        evidence = evidence_of_test(baseline, data)
        columns.insert(
            0, score_bundle(baseline, rows, key="against", label=f"against {_name(baseline)}", evidence=evidence)[0]
        )
    measures = measure(
        encoded.label.astype(np.float64),
        encoded.user,
        columns,
        slices.cold_start(data, rows),
        slices.scenarios(data.schema, rows),
        slices.support_deciles(bundle.engine.reliability, encoded),
        rows["truth"].to_numpy() if "truth" in rows.columns else None,
    )
    auc = measures.columns[-1].metrics.auc
    verdict = [
        f"Bundle {_name(bundle)}: AUC {UNDEFINED if auc is None else format(auc, '.4f')} on {len(encoded):,} test rows."
    ]
    if against_dir is not None:
        verdict.append(compared(measures, "bundle", "against", "Against the other bundle it"))
    content = Evaluation(
        **dict(measures),
        format=Evaluation.FORMAT,
        shipped="bundle",
        mode=bundle.engine.config.mode,
        novelty=data.info.novelty(),
        data=data_facts(data),
        verdict=tuple(verdict),
    )
    if out_dir is not None:
        with atomic_dir(out_dir) as folder:
            content.write(folder / EVALUATION_FILE)
            (folder / TABLE_FILE).write_text(to_csv(content), encoding="utf-8", newline="")
            (folder / REPORT_FILE).write_text(render(content), encoding="utf-8")
    return content


def _name(bundle: Bundle) -> str:
    return bundle.manifest.model_version
