"""Settings of pre-training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Schedule = Literal["linear", "cosine", "fixed"]
LossWeight = Literal["uniform", "elbo"]
Ablation = Literal["none", "embeddings_only", "trunk_only", "no_label"]
Balancing = Literal["kendall", "dro", "uniform_norm"]


class PretrainConfig(BaseModel):
    """How a model learns to restore masked fields before fine-tuning on clicks.

    A row is masked at the rate ``schedule`` gives for its diffusion time: ``linear`` (uniform over 0 to 1), ``cosine`` (more rows with
    little masked), or without a schedule ``fixed`` at ``fixed_rate``. ``loss_weight`` is 1 for all rows, or that of the evidence lower
    bound, up to ``most_weight``. ``ablation`` leaves a part of the method out: of what is transferred, only the embeddings or only
    the trunk, or the label in the sample. ``balancing`` weighs the fields of HeteGenCTR.

    Every behaviour of a sequence is masked by itself. ``behaviours`` of them per row, on average over a batch, are restored in a step, a
    random sample of the masked ones: with all of them a long sequence costs many times what all other fields do together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(default=4096, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    epochs: float = Field(default=2.0, gt=0)
    table_l2: float = Field(default=1e-5, ge=0)
    temperature: float = Field(default=0.07, gt=0)  # of the cosine between a prediction and a value's embedding
    full_softmax: int = Field(default=2048, ge=2)  # vocabularies up to this size use the full softmax
    behaviours: float = Field(default=1.0, gt=0)  # masked behaviours of a sequence restored per row and step
    negatives: int = Field(default=512, ge=1)  # maximum in-batch negatives for larger vocabularies
    label_weight: float = Field(default=1.0, ge=0)  # of the label's loss relative to the mean of the fields' losses
    label_hidden: float = Field(default=0.5, ge=0, le=1)  # share of rows whose label is hidden whatever the mask rate
    schedule: Schedule = "linear"
    fixed_rate: float = Field(default=0.3, gt=0, le=1)
    loss_weight: LossWeight = "uniform"
    most_weight: float = Field(default=10.0, ge=1)
    time_embedding: bool = False
    ablation: Ablation = "none"
    balancing: Balancing = "dro"
    sparse_rows: int = Field(
        default=200_000, ge=1
    )  # tables with at least this many rows update only the rows of a batch
