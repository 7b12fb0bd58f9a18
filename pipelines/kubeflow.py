"""Versions, runs and schedules of the pipelines in Kubeflow Pipelines, through its own client.

All of it may be repeated: a version that exists is used, and a schedule that is the same stays as it is. A run alone is a new one each time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

import urllib3

from pipelines.kubeflow_faults import COOKIES, SIGN_IN, TOKEN, as_sentences, refusal
from thinktwice.errors import PipelineError, reason

if TYPE_CHECKING:
    from kfp import Client
    from kfp_server_api import ApiClient, V2beta1RecurringRun

    from pipelines.compile import Compiled

TIMEOUTS_S = (5.0, 30.0)  # to connect, and between two bytes of an answer
SERVICE_ACCOUNT_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105 - KFP's own variable, set in pods
PAGE = 100
MAX_PARAMETER_BYTES = 10_000  # of all parameters of a run: the default of Kubeflow Pipelines
Parameters = Mapping[str, str | int | float]


class Version(NamedTuple):
    """A version of a pipeline in the cluster; ``created``: it was not there before."""

    pipeline_id: str
    version_id: str
    name: str
    created: bool


class Schedule(NamedTuple):
    """A recurring run; ``change`` is what was done: created, replaced or kept."""

    recurring_run_id: str
    change: str


class Kubeflow:
    """The API of Kubeflow Pipelines at ``host``, for one namespace ("" where it has no users)."""

    def __init__(self, host: str, namespace: str, client: Client) -> None:
        self.host, self.namespace, self.client = host, namespace, client

    def upload(self, compiled: Compiled) -> Version:
        """The version of a compiled pipeline; it and the pipeline are created where they do not exist."""
        with as_sentences(self.host, f"the version {compiled.version} was not uploaded"), _quiet():
            pipeline_id = self._pipeline(compiled.name)
            if version_id := self._version(pipeline_id, compiled.version):
                return Version(pipeline_id, version_id, compiled.version, created=False)
            try:
                made = self.client.upload_pipeline_version(str(compiled.file), compiled.version, pipeline_id)
            except Exception as error:
                # Somebody else has uploaded the same version meanwhile.
                if getattr(error, "status", 0) != 409 or not (
                    version_id := self._version(pipeline_id, compiled.version)
                ):
                    raise
                return Version(pipeline_id, version_id, compiled.version, created=False)
            return Version(pipeline_id, made.pipeline_version_id, compiled.version, created=True)

    def submit(self, version: Version, experiment: str, name: str, parameters: Parameters, account: str) -> str:
        """Start a run of a version; the address of its page in the UI."""
        with as_sentences(self.host, "no run was started"), _quiet():
            run = self.client.run_pipeline(
                self._experiment(experiment),
                name,
                params=dict(parameters),
                pipeline_id=version.pipeline_id,
                version_id=version.version_id,
                service_account=account or None,
            )
        return f"{self.host}/#/runs/details/{run.run_id}"

    def schedule(
        self, version: Version, experiment: str, name: str, cron: str, parameters: Parameters, account: str
    ) -> Schedule:
        """Run a version at the times of ``cron`` (six fields, the first for seconds, in the time zone of the cluster).

        A schedule of this name with another version, time or parameters is replaced: the new one is created first. A run that is due is never
        started beside another one, and times that were missed are left out: an old cut-off after a new one would bring back an old model.
        """
        with as_sentences(self.host, f"the schedule {name} was not changed"), _quiet():
            experiment_id = self._experiment(experiment)
            found = self._schedules(experiment_id, name)
            same = [each for each in found if _is_same(each, version, cron, parameters, account)]
            if same:
                kept, change = same[0].recurring_run_id, "kept"
            else:
                kept = self.client.create_recurring_run(
                    experiment_id,
                    name,
                    cron_expression=cron,
                    max_concurrency=1,
                    no_catchup=True,
                    params=dict(parameters),
                    pipeline_id=version.pipeline_id,
                    version_id=version.version_id,
                    service_account=account or None,
                ).recurring_run_id
                change = "replaced" if found else "created"
        with as_sentences(self.host, f"an earlier schedule {name} is still there; run this again"), _quiet():
            for each in found:
                if each.recurring_run_id != kept:
                    self.client.delete_recurring_run(each.recurring_run_id)
                    change = "replaced"
        return Schedule(kept, change)

    def _pipeline(self, name: str) -> str:
        found = self.client.pipelines.pipeline_service_list_pipelines(
            filter=_equals(name), **({"namespace": self.namespace} if self.namespace else {})
        ).pipelines
        if found:
            return str(found[0].pipeline_id)
        from kfp_server_api import V2beta1Pipeline

        body = V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace or None)
        return str(self.client.pipelines.pipeline_service_create_pipeline(body).pipeline_id)

    def _version(self, pipeline_id: str, name: str) -> str:
        found = self.client.list_pipeline_versions(pipeline_id, filter=_equals(name)).pipeline_versions
        return str(found[0].pipeline_version_id) if found else ""

    def _experiment(self, name: str) -> str:
        return str(self.client.create_experiment(name, namespace=self.namespace or None).experiment_id)

    def _schedules(self, experiment_id: str, name: str) -> list[V2beta1RecurringRun]:
        found: list[V2beta1RecurringRun] = []
        token = ""
        while True:
            page = self.client.list_recurring_runs(
                page_token=token, page_size=PAGE, experiment_id=experiment_id, filter=_equals(name)
            )
            found += page.recurring_runs or []
            token = page.next_page_token or ""
            if not token:
                return found


@contextlib.contextmanager
def connect(host: str, namespace: str = "") -> Iterator[Kubeflow]:
    """The API at ``host``. A token or cookies come from the environment.

    Raises:
        PipelineError: nothing that answers like Kubeflow Pipelines 2 is there, or it needs a namespace or a login.
    """
    host = host.rstrip("/")
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password or parts.query:
        shown = host.rpartition("@")[2]
        raise PipelineError(
            f"--host {shown!r} is not an address: use http://HOST:PORT or https://HOST, without a password"
        )
    from kfp import Client
    from kfp_server_api import ApiClient, Configuration, HealthzServiceApi

    token, cookies = _token(), os.environ.get(COOKIES)
    with ExitStack() as stack:
        with as_sentences(host, "nothing was done"), _quiet():
            configuration = Configuration(host=host)
            if token:
                configuration.api_key = {"authorization": token}
                configuration.api_key_prefix = {"authorization": "Bearer"}
            asking = ApiClient(configuration, cookie=cookies)
            stack.callback(_bounded(asking))
            multi_user = _multi_user(host, HealthzServiceApi(asking))
            if multi_user and not namespace:
                raise PipelineError(f"{host} serves several users: give --namespace, the one of your profile")
            client = Client(host=host, namespace=namespace or "kubeflow", existing_token=token, cookies=cookies)
            stack.callback(_bounded(client.pipelines.api_client))
        yield Kubeflow(host, namespace, client)


def check_parameters(parameters: Parameters, environment: Mapping[str, str] = os.environ) -> None:
    """Raise PipelineError for parameters that a run cannot have: everybody who sees a run sees them.

    Raises:
        PipelineError: one contains a password or a value of a secret variable, or all are too long.
    """
    secrets = {
        name
        for name, value in environment.items()
        if re.search(r"SECRET|TOKEN|PASSWORD|COOKIES|ACCESS_KEY", name) and len(value) >= 6
        if any(value in str(given) for given in parameters.values())
    }
    redis = str(parameters.get("redis_address", ""))
    if secrets or "," in redis or "@" in redis:
        what = f"the value of {min(secrets)}" if secrets else "options of Redis"
        raise PipelineError(
            f"the parameters of a run would contain {what}, and everybody who sees the run sees its parameters: put passwords into "
            "the Secrets ctr-feature-store and thinktwice-s3 (manifests/README.md)"
        )
    size = len(json.dumps(dict(parameters)))
    if size > MAX_PARAMETER_BYTES:
        raise PipelineError(
            f"the parameters of the run have {size:,} bytes, and Kubeflow Pipelines takes {MAX_PARAMETER_BYTES:,}: give a folder or a "
            "pattern instead of many paths"
        )


def checked_cron(text: str) -> str:
    """A cron expression with six fields; one of five gets 0 for its seconds.

    Raises:
        PipelineError: it has another form.
    """
    fields = text.split()
    if len(fields) not in (5, 6) or not all(re.fullmatch(r"[0-9A-Za-z*/,?-]+", field) for field in fields):
        raise PipelineError(
            f"--cron {text!r} is not a cron expression: use five fields (minute, hour, day, month, weekday) such as '0 3 * * *', or six "
            "with seconds before them"
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def stamped(name: str) -> str:
    """A name for one run."""
    return f"{name} {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}"


def _multi_user(host: str, api: Any) -> bool:
    answer = api.healthz_service_get_healthz(_preload_content=False)
    if answer.status >= 400:
        raise PipelineError(refusal(host, answer.status, answer.data, "nothing was done"))
    try:
        value = json.loads(answer.data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise PipelineError(
            f"{host} answers with a page and not with the API of Kubeflow Pipelines, perhaps with its login: check --host, or {SIGN_IN}"
        )
    return value.get("multi_user") is True


def _token() -> str | None:
    """The token of the environment; in a pod that KFP has prepared, that of its service account."""
    path = os.environ.get(SERVICE_ACCOUNT_TOKEN)
    if os.environ.get(TOKEN) or not path:
        return os.environ.get(TOKEN) or None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise PipelineError(
            f"{SERVICE_ACCOUNT_TOKEN} names {path}, which cannot be read ({reason(error)}): {SIGN_IN}"
        ) from error


def _bounded(api: ApiClient) -> Callable[[], None]:
    """The generated client waits for ever, and asks again after a timeout: give its requests a time, and one attempt once they are sent.

    Returns:
        What closes its connections.
    """
    pool = api.rest_client.pool_manager
    pool.connection_pool_kw["retries"] = urllib3.Retry(total=2, read=0, redirect=0, status=0)
    send = api.request

    def request(*positional: Any, _request_timeout: Any = None, **named: Any) -> Any:
        return send(*positional, _request_timeout=_request_timeout or TIMEOUTS_S, **named)

    api.request = request
    return cast(Callable[[], None], pool.clear)


def _equals(name: str) -> str:
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _is_same(run: V2beta1RecurringRun, version: Version, cron: str, parameters: Parameters, account: str) -> bool:
    reference, trigger, config = run.pipeline_version_reference, run.trigger, run.runtime_config
    return (
        reference is not None
        and reference.pipeline_version_id == version.version_id
        and trigger is not None
        and trigger.cron_schedule is not None
        and trigger.cron_schedule.cron == cron
        and dict((config and config.parameters) or {}) == dict(parameters)
        and run.mode == "ENABLE"
        and (not account or run.service_account == account)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the output of KFP's client, which prints addresses and warnings."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
