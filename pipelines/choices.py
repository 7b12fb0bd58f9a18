"""Values of options of the pipeline commands."""

from __future__ import annotations

from typing import Literal

PipelineName = Literal["training", "experiment", "features"]
LogPipelineName = Literal["training", "features"]  # those that read the user's log
