"""The recipe ``default`` now and in the commit before its length was found by itself: CPU time, and what it reaches.

The file is also a script that trains in a checkout, with the code of that checkout alone: python recipe_cost.py LOG SEED FOLDER OUT.npz
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

BEFORE = "e9a3fca"  # the commit that `default` is compared with
NOW = "now"
FACTS = ("cpu_s", "valid_logloss", "valid_auc", "epochs")


def train(log: str, seed: int, folder: Path, out: Path) -> None:
    """Train by the recipe with the code on the path, and write calibrated logits and figures."""
    from benchmarks.evidence.data import LOGS
    from benchmarks.evidence.data import ML_100K as SCHEMA_100K
    from benchmarks.quality import SCHEMA as SCHEMA_1M
    from benchmarks.testtime.data import SIM_SCHEMA, SIM_SPLIT
    from thinktwice import recipes
    from thinktwice.data.splits import SplitSpec
    from thinktwice.data.training_set import build_training_set, load_training_set
    from thinktwice.models import FieldSpace
    from thinktwice.schema import EVENT_TIME, ROW_ID
    from thinktwice.train.finetune import fit
    from thinktwice.train.loader import BlockLoader
    from thinktwice.train.measure import logits_of

    names = {
        "ml_100k_time": "ml_100k",
        "ml_100k_random": "ml_100k",
        "ml_time": "ml_time",
        "sim": "sim",
        "sim_small": "sim_small",
    }
    schemas = {"ml_100k": SCHEMA_100K, "ml_time": SCHEMA_1M, "sim": SIM_SCHEMA, "sim_small": SIM_SCHEMA}
    source, built = names[log], folder / log
    if not built.is_dir():
        split = SIM_SPLIT if log.startswith("sim") else SplitSpec(kind="random" if log.endswith("random") else "time")
        with tempfile.TemporaryDirectory() as scratch:
            rows = LOGS[source].rows(Path(scratch)).sort(EVENT_TIME, ROW_ID)
        build_training_set(rows.to_arrow(), schemas[source], built, split)
    data = load_training_set(built)
    parts = {name: data.part(name) for name in ("train", "valid", "test")}
    recipe = recipes.get("default")
    start = time.process_time()
    done = fit(
        parts["train"],
        parts["valid"],
        FieldSpace.of(data.schema, data.encoder),
        recipe.model,
        recipe.finetune,
        seed=seed,
    )
    spent = time.process_time() - start
    logit = logits_of(done.model, BlockLoader(parts["test"])).astype(np.float64)
    valid = logits_of(done.model, BlockLoader(parts["valid"])).astype(np.float64)
    auc = float("nan") if done.valid_auc is None else done.valid_auc
    aside = out.with_suffix(".part.npz")
    np.savez(
        aside,
        test=done.calibration.a * logit + done.calibration.b,
        valid=done.calibration.a * valid + done.calibration.b,
        label=parts["test"].label,
        user=parts["test"].user,
        valid_label=parts["valid"].label,
        valid_user=parts["valid"].user,
        facts=np.array([spent, done.valid_logloss, auc, done.epochs]),
    )
    os.replace(aside, out)


@dataclass(frozen=True)
class Recipe:
    """One training by ``default`` with the code of ``side``: :data:`NOW` or :data:`BEFORE`."""

    log: str
    side: str
    seed: int = 0


@cache
def code(side: str) -> str:
    """Hash of the code that decides a result."""
    from benchmarks.training.units import code_of

    own = code_of("benchmarks/training/recipe_cost.py")
    if side != NOW:
        return own
    models = ("models/deepfm", "models/embedding", "models/fm", "models/lookup", "recipes/named")
    training = ("augment", "averaging", "loop", "optimizer", "run", "search", "tune")
    return own + code_of(*(f"thinktwice/{name}.py" for name in (*models, *(f"train/{name}" for name in training))))


def unit(run: Recipe, work: Path) -> Any:
    """Its unit of work."""
    from benchmarks.training.units import Unit

    return Unit(f"recipe {run.log} {run.side} seed {run.seed}", code(run.side), lambda: trained(run, work))


def trained(run: Recipe, work: Path) -> dict[str, np.ndarray]:
    """Train in a process of its own, in the checkout of its side."""
    from benchmarks.evidence.kept import ROOT
    from thinktwice.threads import thread_environment

    checkout = ROOT if run.side == NOW else checkout_of(run.side, work)
    folder = (work / "recipe" / run.side).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.npz"
        # -P: the folder of this file must not be first on the path.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), run.log, str(run.seed), str(folder), str(out)]
        environment = {**os.environ, **thread_environment(), "PYTHONPATH": str(checkout)}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"training with the code of {run.side} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
            )
        with np.load(out) as found:
            return {name: found[name] for name in found.files}


def checkout_of(commit: str, work: Path) -> Path:
    """The files of a commit in a folder, made once."""
    import io
    import tarfile

    from benchmarks.evidence.kept import ROOT
    from thinktwice.files import atomic_dir

    folder = (work / "checkouts" / commit).resolve()
    if not folder.is_dir():
        done = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        if done.returncode:
            raise SystemExit(f"commit {commit} cannot be read: {done.stderr.decode()}")
        with atomic_dir(folder) as made, tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(made, filter="data")
    return folder


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
