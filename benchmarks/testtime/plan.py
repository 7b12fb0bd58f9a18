"""The runs of the study: data sets, backbones, regimes and seeds, in the full and the two-minute form."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.testtime import data, study
from benchmarks.testtime.study import Baselines, Run
from benchmarks.testtime.trunks import Trunks
from thinktwice.models import DeepFMConfig
from thinktwice.train.config import FinetuneConfig

WORK = Path(".thinktwice/bench/testtime")
REGIMES = ("tuned", "overtrained")
SIM_SIZES = DeepFMConfig(dim=8, hidden=(64, 32))
SIM_TRAINING = FinetuneConfig(batch_size=1024, rate=4e-3, epochs=4.0)
ML_SIZES = DeepFMConfig(dim=10, hidden=(128, 64))
ML_TRAINING = FinetuneConfig(batch_size=2048, rate=3e-3, epochs=4.0)


@dataclass(frozen=True)
class Part:
    """Runs of one data set and backbone."""

    data: str
    backbone: str
    seeds: tuple[int, ...]
    baselines: Baselines
    regimes: tuple[str, ...] = REGIMES

    def runs(self) -> list[Run]:
        return [
            Run(self.data, self.backbone, regime, seed, self.baselines if regime == "tuned" else "none")
            for seed in self.seeds
            for regime in self.regimes
        ]


FIVE = (0, 1, 2, 3, 4)
FULL = (
    Part("sim_strong", "deepfm", FIVE, "all"),
    Part("sim_weak", "deepfm", FIVE, "all"),
    Part("sim_shift", "deepfm", FIVE, "all"),
    Part("ml_time", "deepfm", FIVE, "masks", ("tuned",)),
    Part("sim_strong", "dcnv2", FIVE, "none", ("tuned",)),
    Part("ml_random", "deepfm", FIVE, "none", ("tuned",)),
    Part("sim_strong", "autoint", (0, 1, 2, 3), "none", ("tuned",)),
    Part("sim_fresh", "deepfm", (0, 1, 2), "none"),
)
QUICK = (Part("sim_quick", "deepfm", (0, 1), "joint"),)


def trunks_of(name: str, work: Path = WORK) -> Trunks:
    """The trained networks of a data set."""
    movielens = name.startswith("ml")
    sizes, config = (ML_SIZES, ML_TRAINING) if movielens else (SIM_SIZES, SIM_TRAINING)
    return Trunks(data.load(name, work), work / name, sizes, config)


def perform(parts: tuple[Part, ...], work: Path = WORK) -> None:
    """Do every run that is not on disk yet, two at a time on one thread each; results are kept on disk."""
    with ProcessPoolExecutor(max_workers=workers(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(_prepare_data, [(name, work) for name in dict.fromkeys(p.data for p in parts)]))
        for part in parts:
            start = time.monotonic()
            # Shared inputs first, so that no two runs compute them at the same time.
            pool.submit(_prepare_l2, (part.data, part.backbone, work)).result()
            ahead = sorted({seed + i for seed in part.seeds for i in range(study.MEMBERS)})
            shared = [(part.data, part.backbone, regime, seed, work) for regime in part.regimes for seed in ahead]
            list(pool.map(_prepare_trunk, shared))
            waiting = {pool.submit(_do, run, work): run for run in part.runs()}
            for done in as_completed(waiting):
                done.result()
            seconds = time.monotonic() - start
            print(f"{part.data} {part.backbone}: {len(waiting)} runs in {seconds:.0f} s", flush=True)


def workers() -> int:
    """Number of processes: one per core, at most two, since each has a training set in memory."""
    return min(2, os.cpu_count() or 1)


def _prepare_data(job: tuple[str, Path]) -> None:
    data.load(*job)


def _prepare_l2(job: tuple[str, str, Path]) -> None:
    name, backbone, work = job
    trunks_of(name, work).tuned_l2(backbone)


def _prepare_trunk(job: tuple[str, str, str, int, Path]) -> None:
    name, backbone, regime, seed, work = job
    trunks = trunks_of(name, work)
    (trunks.overtrained if regime == "overtrained" else trunks.plain)(seed, backbone)


def _do(run: Run, work: Path) -> None:
    study.run(trunks_of(run.data, work), run)
