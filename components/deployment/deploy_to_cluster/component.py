"""Pipeline step: a model version gets a share of the requests of a cluster, or all of them."""

from components.step import step


@step
def deploy_to_cluster(
    model_uri: str,
    namespace: str,
    code_version: str = "",
    service: str = "ctr",
    storage: str = "",
    form: str = "auto",
    percent: int = 10,
    whole: bool = False,
    wait_s: float = 900.0,
) -> str:
    """Start a version beside the stable one, test it, and give it a share; with ``whole``, make it the stable version then.

    A version that does not become ready or does not score is taken back, and the step fails with the reason. A step that is tried again
    goes on where it was.

    Args:
        model_uri: storageUri of the version; or, with ``storage``, the folder ``model/`` of the step ``deploy`` (target ``manifest``).
        namespace: of the InferenceService. The account of the step needs the Role of manifests/components/rollout-access there.
        code_version: version of the installed code; part of the cache key.
        storage: folder of versions in an object store (s3://BUCKET/FOLDER) to copy the model to first.
        form: "auto", "gateway", "knative" or "standard".
        percent: share of the requests; of the users with "gateway".
        wait_s: seconds until pods that are not ready have failed.

    Returns:
        The storageUri.
    """
    from components.deployment.deploy_to_cluster.deploy import deploy_version

    return deploy_version(
        model_uri,
        namespace,
        service,
        storage=storage,
        form=form,
        percent=percent,
        whole=whole,
        wait_s=wait_s,
        tell=lambda line: print(line, flush=True),  # noqa: T201
    )
