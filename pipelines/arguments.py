"""What one run of the pipeline is asked to do."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RunArguments(BaseModel):
    """What one run of the pipeline is asked to do; the fields are those of the graph (`ctr_training.py`).

    `seed` is the one seed of a run: each step is given it where the step depends on it, so that another seed repeats no more
    than it must.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "ml-1m"
    source_path: str = ""
    schema_path: str = ""
    limit: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    split: Literal["time", "random"] = "time"
    recipe: str = "default"
    test_time_mode: str = "lean"
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis_address: str = ""
    target: Literal["local", "manifest"] = "local"
