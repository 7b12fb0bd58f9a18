"""The units of work of the study, each done once, two at a time on one thread each; a later run continues where one ended."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.evidence.data import DAYS, DELAYS, LOGS, load
from benchmarks.evidence.networks import KINDS, networks_of

FIRST = next(iter(DELAYS))


@dataclass(frozen=True)
class Job:
    """One unit of work: ``kind`` of the log ``name``, of one seed and label delay where it has them."""

    name: str
    kind: str
    seed: int = 0
    delay: str = FIRST

    def needs(self) -> tuple[Job, ...]:
        """The units that must be done before."""
        name, kind, seed, delay = self.name, self.kind, self.seed, self.delay
        if kind == "data":
            return ()
        if kind == "trunk":
            return (Job(name, "data"),)
        if kind == "blocks":
            return (Job(name, "trunk", seed),)
        if kind in ("default", "in trunk"):
            return (Job(name, "data", 0, DAYS if kind == "default" else delay),)
        common = (Job(name, "blocks", seed), Job(name, "data", 0, delay))
        if kind == "retrieval":
            shared = seed if LOGS[name].blocks == "random" else 0
            return (*common, Job(name, "correction", seed, delay), Job(name, "retrieved", shared, delay))
        return common


def jobs_of(names: Iterable[str], seeds: int) -> list[Job]:
    """All units of work, those that most depends on first."""
    stages = (
        ("trunk", "blocks", "correction"),
        ("default", "retrieval"),
        ("other counters", "trees", "in trunk", "fewer counters"),
    )
    out: list[Job] = []
    for stage in stages:
        for name in names:
            for seed in range(seeds):
                for kind in stage:
                    delays = DELAYS if kind in KINDS else (FIRST,)
                    out += [Job(name, kind, seed, delay) for delay in delays]
            if stage is stages[0]:
                out.append(Job(name, "trunk", seeds))  # the second trunk of the last seed
    return out


def ordered(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all they need, each once, after what it needs."""
    out: dict[Job, None] = {}

    def add(job: Job) -> None:
        if job not in out:
            for needed in job.needs():
                add(needed)
            out[job] = None

    for job in jobs:
        add(job)
    return list(out)


def perform(jobs: Iterable[Job], work: Path) -> None:
    """Do every unit that is not done."""
    waiting, done = ordered(jobs), set[Job]()
    running: dict[Future[float], Job] = {}
    workers = min(2, os.cpu_count() or 1)  # each has a training set in memory
    with ProcessPoolExecutor(max_workers=workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs())][: workers - len(running)]
            for job in ready:
                waiting.remove(job)
                running[pool.submit(do, job, work)] = job
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                seconds = future.result()
                done.add(job)
                if seconds > 1:
                    print(f"{job.name}: {job.kind}, seed {job.seed}, {job.delay}: {seconds:.0f} CPU s", flush=True)


def do(job: Job, work: Path) -> float:
    """Do one unit; returns the CPU seconds."""
    start = time.process_time()
    if job.kind == "data":
        load(job.name, work, job.delay)
        return time.process_time() - start
    networks = networks_of(job.name, work)
    if job.kind == "trunk":
        networks.trunks.scores(job.seed)
    elif job.kind == "blocks":
        networks.trunks.blocks(job.seed)
    elif job.kind == "default":
        networks.trunks.scores(job.seed, DAYS)
    elif job.kind == "retrieved":
        networks.retrieved(job.seed, job.delay)
    else:
        networks.perform(job.kind, job.seed, job.delay)
    return time.process_time() - start
