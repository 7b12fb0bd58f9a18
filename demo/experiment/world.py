"""The world of the demonstration: a simulated log whose effects drift, ending now, and its continuation as live traffic."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from thinktwice.data.simulator.config import SimConfig
from thinktwice.data.simulator.source import reading_of
from thinktwice.data.simulator.traffic import Traffic
from thinktwice.data.sources.registry import builtin_schema_text
from thinktwice.files import atomic_file
from thinktwice.parquet import write_table
from thinktwice.strict_yaml import parse_yaml

HOUR_US = 3_600_000_000
LOG, SCHEMA = "log.parquet", "sim.yaml"


@dataclass(frozen=True)
class DemoWorld:
    """Settings of the simulated log and of a visit.

    Attributes:
        fame: power of the users' fame in live traffic. As in the log, a few users would come again and again, and an experiment
            would learn little from most of their visits.
    """

    config: SimConfig
    candidates: int = 12
    fame: float = 0.5
    feedback: tuple[str, str] = ("1s", "5s")  # until a click, and until a non-click, is known

    def traffic(self, seed: int) -> Traffic:
        """Visits at the end of the log."""
        return Traffic(self.config, now=1.0, hour=23, candidates=self.candidates, seed=seed, fame=self.fame)

    def write_log(self, folder: Path) -> None:
        """Write the log and its schema. Times are shifted by whole hours, so that the log ends within the last hour."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.concat_tables([chunk.table for chunk in reading_of(self.config).chunks()])
        times = table["time_us"].to_numpy()
        shift = (int(time.time() * 1e6) - int(times.max())) // HOUR_US * HOUR_US
        table = table.set_column(0, "time_us", pa.array(times + shift))
        with atomic_file(folder / LOG) as temporary:
            write_table(table, temporary)
        schema = parse_yaml(builtin_schema_text("sim"))
        click, no_click = self.feedback
        schema["statistics"]["instant"] = {"feedback_delay": {"click": click, "no_click": no_click}}
        with atomic_file(folder / SCHEMA) as temporary:
            temporary.write_text(yaml.safe_dump(schema, sort_keys=False), encoding="utf-8")

    def past_visits(self, number: int, shown: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Users of visits before the experiment, and the clicks [number, candidates] of these users, who were shown random items.

        For planning: the plan needs how often users come and how much their click rates differ.
        """
        users, truth, draw = self.traffic(seed).truths(number)
        clicks = draw < truth
        clicks[:, shown:] = False  # candidates are in random order
        return users, clicks
