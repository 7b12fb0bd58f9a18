"""What the options of every part of the engine have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from thinktwice.calibration import MAX_MAGNITUDE

MAX_COUNT = 2**31 - 1

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=MAX_MAGNITUDE)]


class Options(BaseModel):
    """Frozen settings of one part, which the part's own class declares. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
