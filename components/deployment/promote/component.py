"""Pipeline step: the canary of a cluster becomes its stable version."""

from components.step import step


@step
def promote(
    namespace: str, code_version: str = "", service: str = "ctr", form: str = "auto", wait_s: float = 900.0
) -> None:
    """Make the canary the stable version, without a lost request. A step that is tried again goes on where it was.

    A version that fails now is taken back, and the step fails with the reason.

    Args:
        namespace: of the InferenceService. The account of the step needs the Role of manifests/components/rollout-access there.
        code_version: version of the installed code; part of the cache key.
        form: "auto", "gateway", "knative" or "standard".
        wait_s: seconds until pods that are not ready have failed.
    """
    from components.deployment.deploy_to_cluster.deploy import checked_form
    from components.deployment.rollout.connect import open_session
    from components.deployment.rollout.run import promote as make_stable
    from components.deployment.rollout.waiting import Waiting

    session = open_session(
        service,
        namespace,
        Waiting(limit_s=wait_s),
        tell=lambda line: print(line, flush=True),  # noqa: T201
    )
    make_stable(session, checked_form(form))
