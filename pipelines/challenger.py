"""A challenger from the outputs of the last local run."""

from __future__ import annotations

from pathlib import Path

from components.deployment.challenge.challenger import make_challenger
from thinktwice.console.options import LAST_RUN
from thinktwice.errors import PipelineError, reason
from thinktwice.files import read_json
from thinktwice.release.bundle import bundle_hash
from thinktwice.release.challenger import Version
from thinktwice.release.champion import require_champion


def challenger_of_last_run(work_dir: Path, state_dir: Path, mode: str, recipe: str) -> Version:
    """Package the champion's weights with another test-time mode.

    Raises:
        PipelineError: there is no finished run, or the champion is of another one.
        BundleError: there is no champion.
    """
    if not mode:
        raise PipelineError("--mode is empty: name a test-time mode")
    champion = require_champion(state_dir, "--state or --work")
    try:
        run = read_json(work_dir / LAST_RUN)
        tasks = {name: task["outputs"] for name, task in run["tasks"].items()}
        bundle, training_set = Path(run["bundle"]), Path(run["training_set"])
        plain, pretrained = (Path(tasks[name]["model"]) for name in ("finetune", "finetune-2"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(
            f"{work_dir} contains no finished run ({reason(error)}): run `thinktwice pipeline run --challenger {mode}`"
        ) from error
    if bundle_hash(bundle) != champion.info.bundle_hash:
        raise PipelineError(
            f"the champion (bundle {champion.info.bundle_hash[:12]}) is not of the last run in {work_dir} "
            f"(bundle {bundle_hash(bundle)[:12]}): run `thinktwice pipeline run --challenger {mode}`"
        )
    return make_challenger(
        state_dir,
        mode=mode,
        recipe=recipe,
        bundle_dir=champion.bundle_dir,
        training_set_dir=training_set,
        plain_dir=plain,
        pretrained_dir=pretrained,
        feature_store_dir=champion.feature_store_dir,
    )
