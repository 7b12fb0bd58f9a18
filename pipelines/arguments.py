"""Arguments of one run of the pipeline."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.choices import DeployTarget
from thinktwice.choices import MAX_COST, ChallengerMode, OnlineStoreKind, PretrainingOption, SearchMode
from thinktwice.data.split_spec import parse_split
from thinktwice.errors import DataError, PipelineError
from thinktwice.recipes import resolved


class RunArguments(BaseModel):
    """Arguments of one run of the pipeline; the fields are those of the graph (`ctr_training.py`).

    `seed` is the only seed of a run. It is passed only to steps that depend on it, so that another seed repeats no more steps than
    necessary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "ml-1m"
    source_path: str = ""
    schema_path: str = ""
    limit: int = Field(0, ge=0)
    since: str = ""
    until: str = ""
    seed: int = Field(0, ge=0)
    split: str = "time"
    recipe: str = "default"
    backbone: str = ""
    pretraining: PretrainingOption = ""
    checkpoints: str = ""
    test_time_mode: SearchMode = "lean"
    max_cost: float = Field(MAX_COST, ge=1, allow_inf_nan=False)
    challenger: ChallengerMode = ""
    online_store: OnlineStoreKind = "sqlite"
    redis_address: str = ""
    target: DeployTarget = "local"

    @field_validator("split")
    @classmethod
    def _known_split(cls, value: str) -> str:
        try:
            return parse_split(value).text
        except DataError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _known_recipe(self) -> RunArguments:
        try:
            resolved(self.recipe, backbone=self.backbone, pretraining=self.pretraining)
        except PipelineError as error:
            raise ValueError(str(error)) from error
        return self
