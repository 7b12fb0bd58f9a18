"""Application of a decision to one of the targets."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from components.choices import DeployTarget
from thinktwice.choices import listed
from thinktwice.errors import PipelineError
from thinktwice.experiment.record import EffectRecord
from thinktwice.release.rollout import Rollout, apply_pending
from thinktwice.release.rollout_kserve import KServeRollout
from thinktwice.release.rollout_local import LocalRollout


def apply_decision(
    name: str, records_dir: Path | str, *, target: str, state_dir: Path | str, rollout_dir: Path | str
) -> EffectRecord | None:
    """Carry out the last decision of an experiment; None if that is done already.

    Raises:
        PipelineError: the target is unknown. ExperimentError, BundleError: the target refuses.
    """
    if target not in get_args(DeployTarget):
        raise PipelineError(f"target {target!r} is unknown: choose one of {listed(DeployTarget)}")
    rollout: Rollout
    if target == "local":
        rollout = LocalRollout(Path(state_dir), Path(rollout_dir))
    else:
        rollout = KServeRollout.opened(Path(rollout_dir))
    return apply_pending(Path(records_dir), name, rollout)
