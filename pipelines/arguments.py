"""Arguments of one run of the pipeline."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from components.choices import DeployTarget
from thinktwice.choices import MAX_COST, ChallengerMode, OnlineStoreKind, PretrainingOption, SearchMode
from thinktwice.data.split_spec import parse_split
from thinktwice.errors import DataError, PipelineError
from thinktwice.recipes import resolved
from thinktwice.storage.location import parse_location


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
    continue_from: str = ""
    test_time_mode: SearchMode = "lean"
    max_cost: float = Field(MAX_COST, ge=1, allow_inf_nan=False)
    challenger: ChallengerMode = ""
    serving_namespace: str = ""
    model_storage: str = ""
    canary_percent: int = Field(10, ge=1, le=100)
    online_store: OnlineStoreKind = "sqlite"
    redis_address: str = ""
    target: DeployTarget = "local"

    def parameters(
        self, code_version: str, data_version: str, continue_version: str = ""
    ) -> dict[str, str | int | float]:
        """The parameters of the graph, but for those that say where the champion is.

        Args:
            code_version, data_version: of the code of the steps and of the files that are read, for the cache keys.
            continue_version: hash of the bundle that training continues; "" for none, or one that is not on this machine.
        """
        from thinktwice.data.sources.registry import source_named

        return {
            **self.model_dump(),
            "data_seed": self.seed if source_named(self.source).seeded else 0,
            "split_seed": self.seed if self.split == "random" else 0,
            "code_version": code_version,
            "data_version": data_version,
            "continue_version": continue_version,
        }

    @field_validator("split")
    @classmethod
    def _known_split(cls, value: str) -> str:
        try:
            return parse_split(value).text
        except DataError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _known_canary(self) -> RunArguments:
        if self.serving_namespace and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.serving_namespace):
            raise ValueError(
                f"--serving-namespace {self.serving_namespace!r} is not the name of a namespace: use lower-case letters, digits and hyphens"
            )
        if self.serving_namespace and not self.model_storage:
            raise ValueError(
                f"the canary in {self.serving_namespace} needs a folder of versions that the cluster reads: give --model-storage s3://BUCKET/FOLDER"
            )
        if self.model_storage and not self.serving_namespace:
            raise ValueError("--model-storage is that of a canary: give --serving-namespace too, or leave it out")
        if self.model_storage:
            parse_location(self.model_storage)
        return self

    @model_validator(mode="after")
    def _known_recipe(self) -> RunArguments:
        try:
            resolved(self.recipe, backbone=self.backbone, pretraining=self.pretraining)
        except PipelineError as error:
            raise ValueError(str(error)) from error
        return self
