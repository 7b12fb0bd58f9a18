"""Pipeline step: carry out the decision."""

from kfp.dsl import Artifact, Output

from components.step import step


@step
def apply(
    name: str,
    action: str,
    records_dir: str,
    target: str,
    state_dir: str,
    rollout_dir: str,
    code_version: str,
    applied: Output[Artifact],
) -> str:
    """Ramp, promote or roll back, if that is not done yet. Returns what was done, "" for nothing.

    Args:
        action: of the decision; only shows in the graph what is applied, the record decides.
        target: "local" (files that the servers and the gateway of this machine follow) or "manifest" (files for a cluster).
        state_dir: folder of the champion and the challengers, for the target "local".
        rollout_dir: folder of the roll-out.
    """
    from components.experiment.apply.effect import apply_decision

    change = apply_decision(name, records_dir, target=target, state_dir=state_dir, rollout_dir=rollout_dir)
    text = "" if change is None else change.model_dump_json()
    with open(applied.path, "w", encoding="utf-8") as file:
        file.write(text)
    return "" if change is None else change.effect
