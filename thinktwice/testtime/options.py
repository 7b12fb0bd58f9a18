"""The base class of the options of all parts of the engine."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from thinktwice.calibration import MAX_MAGNITUDE

MAX_COUNT = 2**31 - 1

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=MAX_MAGNITUDE)]


class Options(BaseModel):
    """Frozen options of one part, declared in a subclass. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
