"""Settings of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Augmentation = Literal["none", "mask_block", "mask_loo"]
Schedule = Literal["linear", "averaged"]


class FinetuneConfig(BaseModel):
    """How a model is trained on clicks.

    ``table_l2``, ``augmentations`` and ``unknown_shares`` are the candidates.

    The ``schedule`` of a run says how its weights come to rest. ``linear``: the rate rises over the first ``warmup`` share of the
    steps and then falls linearly to 0. ``averaged``: the rate rises over that share of the first epoch and then stays, and what is
    evaluated and kept is a running average of the weights (:mod:`thinktwice.train.averaging`), so that a run can end anywhere.

    Without a ``budget`` the best L2 under the first augmentation is chosen first, then the best augmentation under that L2. Each
    trial runs for ``trial_epochs`` with the whole rate schedule compressed to that length; the candidate with the best
    validation logloss then trains from scratch for ``epochs``. Of all these runs the one with the lowest validation logloss
    is kept, with the weights of its best evaluation on validation.

    With a ``budget``, the number of epochs that all runs together may take, the length is found as well
    (:mod:`thinktwice.train.search`), up to ``epochs``, and a grid opens itself where its best value lies at an end. An
    ``averaged`` run finds its length by itself; of the ``linear`` schedule, lengths are tried from ``trial_epochs`` on, and every
    run is judged by its last weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(default=1024, ge=1)
    schedule: Schedule = "linear"
    rate: float = Field(default=4e-3, gt=0)  # peak of the schedule
    warmup: float = Field(default=0.05, ge=0, lt=1)
    table_l2: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(3e-4, 1e-3, 3e-3), min_length=1)
    augmentations: tuple[Augmentation, ...] = Field(default=("none", "mask_block"), min_length=1)
    trial_epochs: float = Field(default=1.0, gt=0)
    epochs: float = Field(default=4.0, gt=0)
    budget: float | None = Field(default=None, gt=0)  # epochs of all runs together
    checks_per_epoch: int = Field(default=2, ge=1)  # evaluations on validation
    unknown_share: float = Field(
        default=0.01, ge=0, le=0.5
    )  # share of values, of users and of items made unknown in training
    unknown_shares: tuple[Annotated[float, Field(ge=0, le=0.5)], ...] = ()  # further shares to try within the budget
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # labels become s/2 and 1 - s/2
    click_weight: float = Field(default=1.0, gt=0)  # weight of a clicked row relative to others
    half_life_days: float | None = Field(default=None, gt=0)  # rows this much older than the newest count half
    dropped_counters: float = Field(
        default=0.07, ge=0, le=0.5
    )  # share of training rows whose counters are all made unknown, for a model that reads counters
    blocks: int = Field(default=10, ge=2)  # mask_block: number of blocks of equal size in the train window
    skipped_blocks: int = Field(
        default=3, ge=1
    )  # mask_block: first blocks, in which everything looks new, are not masked
    masked_rows: float = Field(default=0.25, gt=0, le=1)  # mask_*: share of rows that are masked
    masked_fields: float = Field(default=0.3, gt=0, le=1)  # mask_*: at most this share of a row's fields
    kappa: float = Field(default=20.0, gt=0)  # mask_*: reliability of a value seen c times is c / (c + kappa)
    sparse_rows: int = Field(
        default=200_000, ge=1
    )  # tables with at least this many rows update only the rows of a batch
