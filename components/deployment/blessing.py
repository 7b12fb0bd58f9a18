"""The blessing of a bundle, as the deployment steps read it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from thinktwice.errors import PipelineError, reason
from thinktwice.files import read_json
from thinktwice.release.bundle import bundle_hash

BLESSING_FILE = "blessing.json"


class BlessingFile(BaseModel):
    """What this package needs of ``blessing.json``; the blessing step may say more."""

    blessed: bool
    bundle_hash: str
    reasons: list[str] = []
    champion_hash: str | None = None  # bundle of the champion at that moment, None when there was none


def require_blessing(blessing: Path | str, bundle_dir: Path | str) -> BlessingFile:
    """Read the blessing (a file, or the folder that holds it) and make sure that it is positive and for this very bundle.

    Raises:
        PipelineError: there is none, it is negative, or it is for another bundle.
    """
    path = Path(blessing)
    path = path / BLESSING_FILE if path.is_dir() else path
    try:
        value = BlessingFile.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise PipelineError(f"blessing {path} cannot be read ({reason(error)}): run the bless step first") from error
    if not value.blessed:
        why = "; ".join(value.reasons) or "no reason given"
        raise PipelineError(f"the model is not blessed ({why}): it is not deployed, the champion stays")
    if (found := bundle_hash(bundle_dir)) != value.bundle_hash:
        raise PipelineError(
            f"the blessing is for bundle {value.bundle_hash[:12]} and this is bundle {found[:12]}: bless this bundle"
        )
    return value
