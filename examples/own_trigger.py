"""Your own trigger with its own options: select the rows to escalate. Compared on test rows with entropy and with random rows at the same rate.

    python examples/own_trigger.py OUT

With a model this small, a trigger may not improve anything; the script shows how to compare.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

import thinktwice
from thinktwice.data.training_set import load_training_set
from thinktwice.testtime.aggregators import Consistency
from thinktwice.testtime.config import SecondLook, TestTimeConfig
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.opinions.config import FeaturePaths
from thinktwice.testtime.triggers import BasePass, Entropy, Random, Selection, Trigger


class NearTheCut(Trigger):
    """Rows whose score is close to the cut. Signal [B]: 1 at the cut, 0 at a distance of ``width``."""

    cut: float = 0.15  # for example, the probability above which an impression is worth its price
    width: float = 0.5  # in log-odds

    def mark(self, base_pass: BasePass) -> Selection:
        signal = 1 - np.abs(base_pass.logit - np.log(self.cut / (1 - self.cut))) / self.width
        return Selection(signal, signal > 0)


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
    paths = TestTimeConfig(
        second_look=SecondLook(trigger=Entropy(), opinion=FeaturePaths(aggregator=Consistency(), shrink=True))
    )

    def engine(config: TestTimeConfig) -> Engine:
        return Engine(bundle.model, bundle.engine.reliability, config, bundle.engine.calibration)

    def at_rate(kind: type[Entropy] | type[Random], rate: float) -> Engine:
        signal = raw_rows(engine(paths.looking(trigger=kind())), encoded).signal
        return engine(paths.looking(trigger=kind(threshold=float(np.quantile(signal, 1 - rate)))))

    own_engine = engine(paths).with_trigger(NearTheCut(cut=0.15))
    rate = float(raw_rows(own_engine, encoded).escalated.mean())
    engines = {
        "never": engine(TestTimeConfig()),
        "near the cut": own_engine,
        "entropy": at_rate(Entropy, rate),
        "random": at_rate(Random, rate),
    }
    return {name: measure(replace(bundle, engine=e), test, name) for name, e in engines.items()}


def measure(bundle: thinktwice.Bundle, test: pl.DataFrame, name: str) -> tuple[float, float]:
    scores = thinktwice.score_table(bundle, test)
    share, loss = float((scores.num_paths > 1).mean()), logloss(test["label"].to_numpy(), scores.probability)
    print(f"{name:13} {share:6.1%} escalated, logloss {loss:.4f}")
    return share, loss


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".thinktwice/examples/own-trigger"))
