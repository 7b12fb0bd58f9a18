"""Calibration coefficients: from raw logits to log-odds whose probabilities match the click rate. The fits are elsewhere."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Largest magnitude of a weight or coefficient. Trained ones are far smaller; sums of products of larger ones overflow.
MAX_MAGNITUDE = 1e6

Coefficient = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, allow_inf_nan=False)]


class Calibration(BaseModel):
    """p = sigmoid(a * z + b), fitted on validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Coefficient = 1.0
    b: Coefficient = 0.0


class SupportCalibration(BaseModel):
    """Log-odds (a + d u) z + b + c u of a raw logit z, where u in 0..1 is the missing support of the row's values.

    It corrects scores that are overconfident for rows with little support, and a different click rate of new users or
    items, without an extra pass. It may also fit a drift that coincides with novelty, so it is accepted on later rows only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Coefficient = 1.0
    b: Coefficient = 0.0
    c: Coefficient = 0.0
    d: Coefficient = 0.0
