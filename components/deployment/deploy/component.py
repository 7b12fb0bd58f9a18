"""Pipeline step: an archive goes into production."""

from kfp.dsl import Artifact, Input, Model, Output

from components.step import step


@step
def deploy(
    archive: Input[Model],
    bundle: Input[Model],
    feature_store: Input[Artifact],
    blessing: Input[Artifact],
    target: str,
    state_dir: str,
    code_version: str,
    deployment: Output[Artifact],
) -> str:
    """Make the model the champion of this machine, or render what a cluster needs to serve it.

    Args:
        archive: folder with ``ctr.mar``.
        bundle: the model bundle inside it.
        feature_store: feature store that the model was trained on.
        blessing: verdict of the bless step on this bundle.
        target: "local" (champion in ``state_dir``) or "manifest" (model folder and InferenceService in ``deployment``).
        state_dir: folder of the champion.
        code_version: version of the installed code; part of the cache key.
        deployment: what was deployed, as a folder with ``deployment.json``.
    """
    from components.deployment.deploy.deployment import deploy_model

    info = deploy_model(
        archive.path,
        bundle.path,
        feature_store.path,
        blessing.path,
        target=target,
        state_dir=state_dir,
        out_dir=deployment.path,
        out_uri=deployment.uri,
    )
    deployment.metadata.update(info)
    return info["place"]
