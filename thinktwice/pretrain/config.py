"""Settings of pre-training."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PretrainConfig(BaseModel):
    """How a model learns to restore masked fields before fine-tuning on clicks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=4096, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    epochs: float = Field(default=2.0, gt=0)
    table_l2: float = Field(default=1e-5, ge=0)
    temperature: float = Field(default=0.07, gt=0)  # of the cosine between a prediction and a value's embedding
    full_softmax: int = Field(default=2048, ge=2)  # vocabularies up to this size use the full softmax
    negatives: int = Field(default=512, ge=1)  # maximum in-batch negatives for larger vocabularies
    label_weight: float = Field(default=1.0, ge=0)  # of the label's loss relative to the mean of the fields' losses
    label_hidden: float = Field(default=0.5, ge=0, le=1)  # share of rows whose label is hidden whatever the mask rate
    sparse_rows: int = Field(
        default=200_000, ge=1
    )  # tables with at least this many rows update only the rows of a batch
