"""Your own trigger: which rows are escalated. Compared on test rows with entropy and with chance at the same rate.

    python examples/own_trigger.py OUT

On a model as small as this one no trigger need help; the point is the comparison.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

import thinktwice
from thinktwice.data.training_set import load_training_set
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.modes import preset
from thinktwice.testtime.triggers import BasePass, Selection

CUT = 0.15  # say, the probability from which on an impression is worth its price
WIDTH = 0.5  # in log-odds


def near_the_cut(config: TestTimeConfig, base_pass: BasePass) -> Selection:
    """Rows whose score may still change sides. Signal [B]: 1 at the cut, 0 at WIDTH from it."""
    signal = 1 - np.abs(base_pass.logit - np.log(CUT / (1 - CUT))) / WIDTH
    return Selection(signal, signal > config.threshold)


def logloss(label: np.ndarray, probability: np.ndarray) -> float:
    return float(-np.mean(np.where(label == 1, np.log(probability), np.log1p(-probability))))


def main(out: Path, rows: int = 2000) -> dict[str, tuple[float, float]]:
    """Share of escalated test rows and logloss, by trigger."""
    thinktwice.ingest_log(None, out / "raw", source="sim", limit=rows)
    checked = thinktwice.validate_log(out / "raw", out / "checked")
    trained = thinktwice.train_model(checked.clean_dir, out / "model", recipe="tiny", test_time="off")
    bundle = thinktwice.open_bundle(trained.bundle_dir)
    data = load_training_set(trained.training_set_dir)
    test, encoded = data.rows("test"), data.part("test")

    # Feature paths for the escalated rows; every setting that a trigger does not decide is the same for all.
    paths = preset("uttsi").model_copy(
        update={"min_count": 0, "pair_share": 0.0, "trigger": "entropy", "threshold": 0.0}
    )

    def engine(config: TestTimeConfig) -> Engine:
        return Engine(bundle.model, bundle.engine.reliability, config, bundle.engine.calibration)

    def at_rate(config: TestTimeConfig, rate: float) -> Engine:
        threshold = float(np.quantile(raw_rows(engine(config), encoded).signal, 1 - rate))
        return engine(config.model_copy(update={"threshold": threshold}))

    own = engine(paths).with_trigger(near_the_cut)
    rate = float(raw_rows(own, encoded).escalated.mean())
    engines = {
        "never": engine(paths.model_copy(update={"trigger": "never"})),
        "near the cut": own,
        "entropy": at_rate(paths, rate),
        "random": at_rate(paths.model_copy(update={"trigger": "random"}), rate),
    }
    return {name: measure(replace(bundle, engine=e), test, name) for name, e in engines.items()}


def measure(bundle: thinktwice.Bundle, test: pl.DataFrame, name: str) -> tuple[float, float]:
    scores = thinktwice.score_table(bundle, test)
    share, loss = float((scores.num_paths > 1).mean()), logloss(test["label"].to_numpy(), scores.probability)
    print(f"{name:13} {share:6.1%} escalated, logloss {loss:.4f}")
    return share, loss


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".thinktwice/examples/own-trigger"))
