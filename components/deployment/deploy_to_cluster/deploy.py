"""Copies a model to the store of a cluster and rolls it out there."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from components.deployment.deploy.deployment import MODEL_FOLDER
from components.deployment.rollout.connect import open_session
from components.deployment.rollout.objects import Version, version_at
from components.deployment.rollout.run import Choice, canary, promote, status
from components.deployment.rollout.waiting import Waiting
from thinktwice.choices import listed
from thinktwice.errors import PipelineError
from thinktwice.release.model_store import push_model


def checked_form(form: str) -> Choice:
    """The form of a roll-out.

    Raises:
        PipelineError: it is unknown.
    """
    for known in get_args(Choice):
        if form == known:
            return known
    raise PipelineError(f"form {form!r} is unknown: choose one of {listed(Choice)}")


def deploy_version(
    model_uri: str,
    namespace: str,
    service: str,
    *,
    storage: str = "",
    form: str = "auto",
    percent: int = 10,
    whole: bool = False,
    wait_s: float = 900.0,
    tell: Callable[[str], None] = lambda text: None,
) -> str:
    """See the step. Returns the storageUri.

    Raises:
        PipelineError: the form or the share is not valid, or the URI names no version. BundleError, StorageError: the model cannot be copied. RolloutError: see ``canary``.
    """
    kind = checked_form(form)
    if not 1 <= percent <= 100:
        raise PipelineError(f"percent {percent} is not a share: give 1 to 100")
    if storage:
        model_uri, _ = push_model(model_uri.removeprefix("file://"), storage)
        tell(f"storageUri: {model_uri}")
    version = version_at(model_uri)
    if version.name == MODEL_FOLDER:
        raise PipelineError(
            f"{model_uri} is the folder of the step deploy, whose name is not a version: give storage (model_storage of the pipeline), "
            "the s3://BUCKET/FOLDER to copy it to"
        )
    session = open_session(service, namespace, Waiting(limit_s=wait_s), tell=tell)
    found = status(session, kind)
    live, state = found.live, found.state
    # With arms, only the record knows of a canary; and an interrupted promotion may have replaced the stable version already.
    pending = state is not None and (state.action != "" or state.canary is not None)
    if live.stable.name == version.name and live.canary is None and not pending:
        tell(f"{version.name} is the stable version already")
        return version.uri
    if not (whole and state is not None and state.action == "promote" and _name(state.canary) == version.name):
        canary(session, version, percent, kind)
    if whole:
        promote(session, kind)
    return version.uri


def _name(version: Version | None) -> str:
    return "" if version is None else version.name
