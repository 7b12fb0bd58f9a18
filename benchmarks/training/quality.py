"""Quality of backbones against peers: the same frozen rows, vocabularies, sizes, batches and seeds.

On both sides the L2 is chosen by validation logloss with seed 0, from the same grid, and the weights are those of the best evaluation
on validation. Ours trains for a fixed longest length by one of our two schedules, chosen in the same way, and makes no value unknown; a peer
with its default optimizer and rate, early stopping, and where it has one its own reduction of the rate.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.training import data
from benchmarks.training.peers.environment import FOLDER, PEERS, python_of
from benchmarks.training.units import Arrays, Unit, code_of
from thinktwice import recipes
from thinktwice.models import FieldSpace, backbone_config
from thinktwice.threads import thread_environment
from thinktwice.train.config import FinetuneConfig, Schedule
from thinktwice.train.finetune import fit
from thinktwice.train.loader import BlockLoader
from thinktwice.train.measure import logits_of

OURS = "thinktwice"
DIM, HIDDEN, BATCH, EPOCHS = 16, (128, 64), 1024, 8
PEER_RATE, PEER_EPOCHS, PATIENCE = 1e-3, 20, 2
SHARED = ("deepfm", "dcnv2")  # models that peers have too
BACKBONES = (*SHARED, "finalmlp", "masknet", "autoint")
RECIPES: dict[Schedule, str] = {"averaged": "default", "linear": "ml-1m"}  # the recipe with the rate of a schedule
FACTS = ("cpu_s", "rows", "epochs")
SCORES = ("benchmarks/training/quality.py", "benchmarks/training/data.py")
OUR_CODE = code_of(
    *SCORES,
    "thinktwice/models/embedding.py",
    "thinktwice/models/fm.py",
    *(f"thinktwice/models/{name}.py" for name in BACKBONES),
    "thinktwice/train/averaging.py",
    "thinktwice/train/loop.py",
    "thinktwice/train/optimizer.py",
    "thinktwice/train/run.py",
)


@dataclass(frozen=True)
class Training:
    """One training of ``side``, ours or a peer; ``schedule`` is ours alone."""

    side: str
    model: str
    log: str
    table_l2: float
    seed: int = 0
    schedule: Schedule = "averaged"

    def unit(self, work: Path) -> Unit:
        linear = " linear" if self.schedule == "linear" else ""
        name = f"quality {self.log} {self.side} {self.model}{linear} {self.table_l2:g} seed {self.seed}"
        if self.side == OURS:
            settings = self.config.model_dump_json(exclude_defaults=True)
            return Unit(name, f"{OUR_CODE} {settings}", lambda: self._ours(work))
        peer = PEERS[self.side]
        code = code_of(
            "benchmarks/training/data.py",
            f"benchmarks/training/peers/{peer.script}",
            "benchmarks/training/peers/job.py",
        )
        return Unit(name, f"{code} {peer.packages} {PEER_RATE} {PEER_EPOCHS} {PATIENCE}", lambda: self._peer(work))

    @property
    def config(self) -> FinetuneConfig:
        """Our settings: those of a recipe with the schedule, for a single run without unknown values."""
        alone = {
            "table_l2": (self.table_l2,),
            "augmentations": ("none",),
            "unknown_share": 0.0,
            "unknown_shares": (),
            "budget": None,
        }
        length = {"batch_size": BATCH, "epochs": float(EPOCHS), "trial_epochs": float(EPOCHS)}
        return recipes.get(RECIPES[self.schedule]).finetune.model_copy(update=alone | length)

    def _ours(self, work: Path) -> Arrays:
        training_set = data.load(self.log, work)
        train, valid, test = (training_set.part(part) for part in data.PARTS)
        backbone = backbone_config(self.model, dim=DIM, hidden=HIDDEN)
        start = time.process_time()
        done = fit(
            train,
            valid,
            FieldSpace.of(training_set.schema, training_set.encoder),
            backbone,
            self.config,
            seed=self.seed,
        )
        facts = [time.process_time() - start, len(train) * EPOCHS, done.epochs]
        logit = {part: logits_of(done.model, BlockLoader(rows)) for part, rows in (("valid", valid), ("test", test))}
        return {part: value.astype(np.float64) for part, value in logit.items()} | {"facts": np.array(facts)}

    def _peer(self, work: Path) -> Arrays:
        peer = PEERS[self.side]
        python, folder = python_of(peer, work), data.exported(self.log, work).resolve()
        job = {
            "folder": str(folder),
            "model": self.model,
            "table_l2": self.table_l2,
            "seed": self.seed,
            "dim": DIM,
            "hidden": list(HIDDEN),
            "batch_size": BATCH,
            "rate": PEER_RATE,
            "epochs": PEER_EPOCHS,
            "patience": PATIENCE,
        }
        with tempfile.TemporaryDirectory() as scratch:
            asked, out = Path(scratch) / "job.json", Path(scratch) / "out.npz"
            asked.write_text(json.dumps(job), encoding="utf-8")
            # Not the resolved path: python is a link, and what it points to has none of the packages.
            command = [str(python.absolute()), str(FOLDER / peer.script), str(asked), str(out)]
            environment = {**os.environ, **thread_environment()}
            done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
            if done.returncode or not out.is_file():
                raise SystemExit(f"{peer.name} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
            with np.load(out) as found:
                return {name: found[name] for name in found.files}
