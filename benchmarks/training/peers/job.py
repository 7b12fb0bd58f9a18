"""What the scripts of all peers share: the job, the frozen rows, and the result. It needs nothing of this project.

python run_PEER.py JOB.json OUT.npz
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

LABEL = "label"


@dataclass(frozen=True)
class Job:
    """One training: ``model`` (``deepfm`` or ``dcnv2``) on the files in ``folder``, sizes as ours, at most ``epochs``; it ends after
    ``patience`` epochs that are no better on validation."""

    folder: str
    model: str
    table_l2: float
    seed: int
    dim: int
    hidden: list[int]
    batch_size: int
    rate: float
    epochs: int
    patience: int

    def part(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(Path(self.folder) / f"{name}.parquet")

    def sizes(self) -> dict[str, int]:
        """Number of values by field, the unknown value 0 included."""
        return json.loads((Path(self.folder) / "sizes.json").read_text())


@dataclass
class Trained:
    """Probabilities of the validation and the test rows by the best weights; CPU seconds and rows of the training."""

    valid: np.ndarray
    test: np.ndarray
    cpu_s: float
    rows: int
    epochs: int


def read() -> Job:
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def write(trained: Trained) -> None:
    """Logits of the probabilities, and figures, written aside and then renamed."""
    target = Path(sys.argv[2])
    aside = target.with_suffix(".part.npz")
    np.savez(
        aside,
        valid=_logit(trained.valid),
        test=_logit(trained.test),
        facts=np.array([trained.cpu_s, trained.rows, trained.epochs]),
    )
    os.replace(aside, target)


def logloss(label: np.ndarray, probability: np.ndarray) -> float:
    p = np.clip(probability.astype(np.float64).ravel(), 1e-7, 1 - 1e-7)
    return float(-(label * np.log(p) + (1 - label) * np.log1p(-p)).mean())


def by_epochs(
    job: Job,
    epoch: Callable[[], None],
    predict: Callable[[str], np.ndarray],
    state: Callable[[], dict],
    restore: Callable[[dict], None],
) -> Trained:
    """Train epoch by epoch and keep the weights of the best validation logloss."""
    label = job.part("valid")[LABEL].to_numpy(np.float64)
    best: tuple[float, int, dict] | None = None
    spent, done = 0.0, 0
    while done < job.epochs:
        start = time.process_time()
        epoch()
        spent += time.process_time() - start
        done += 1
        loss = logloss(label, predict("valid"))
        print(f"epoch {done}: validation logloss {loss:.5f}, {spent:.0f} CPU s", flush=True)
        if best is None or loss < best[0]:
            best = loss, done, {name: value.detach().clone() for name, value in state().items()}
        elif done - best[1] >= job.patience:
            break
    assert best is not None
    restore(best[2])
    rows = done * len(job.part("train"))
    return Trained(predict("valid"), predict("test"), spent, rows, best[1])


def _logit(probability: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(probability, np.float64).ravel(), 1e-9, 1 - 1e-9)
    return np.log(p) - np.log1p(-p)
