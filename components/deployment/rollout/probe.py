"""Requests to a predictor or the gateway from a pod inside the cluster: the smoke test of a version, and load."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable

from pydantic import Field, ValidationError

from components.cluster.client import Api, Json
from components.deployment.rollout.objects import CONTAINER, PODS, probe_pod
from components.deployment.rollout.waiting import pod_faults
from thinktwice.errors import RolloutError
from thinktwice.frozen import Frozen
from thinktwice.printable import printable

#: An empty row is a valid request to any model.
EMPTY_ROW = '{"instances": [{"rows": [{}]}]}'
PATH = "/v1/models/ctr:predict"

#: Runs in the pod with the standard library alone. Counts statuses, versions and arms; the result is the termination message, of which
#: Kubernetes keeps 4,096 bytes: what a server answers may be anything, and is cut until the result fits.
SCRIPT = """
import collections, json, math, os, threading, time, urllib.error, urllib.request

env = os.environ
body, rate, count, tries = env["PROBE_BODY"].encode(), float(env["PROBE_RATE"]), int(env["PROBE_COUNT"]), int(env["PROBE_TRIES"])
statuses, versions, arms = collections.Counter(), collections.Counter(), collections.Counter()
lock, bad, scored = threading.Lock(), [], [0]


def once(number):
    headers = {"Content-Type": "application/json", "X-Deadline-Ms": "6000"}
    if env["PROBE_UNIT"]:
        headers["X-Experiment-Unit"] = env["PROBE_UNIT"].replace("{n}", str(number))
    request = urllib.request.Request(env["PROBE_URL"], body, headers)
    try:
        try:
            answer = urllib.request.urlopen(request, timeout=15)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return str(answer.status), answer.read(), answer.headers.get("x-served-arm") or ""
    except Exception as error:
        return type(getattr(error, "reason", None) or error).__name__, str(error).encode("utf-8", "replace"), ""


def ask(number):
    for attempt in range(tries):
        status, text, arm = once(number)
        if status == "200":
            break
        time.sleep(2.0 if attempt + 1 < tries else 0)
    version, fine = "", 0
    if status == "200":
        try:
            for one in json.loads(text)["predictions"]:
                version = str(one["model_version"])
                fine += sum(math.isfinite(entry["probability"]) for entry in one.get("items") or one["rows"])
        except Exception as error:
            status = "200 without scores (" + repr(error) + ")"
    with lock:
        statuses[status] += 1
        if version:
            versions[version] += 1
        if arm and status == "200":
            arms[arm] += 1
        scored[0] += fine
        if status != "200" and len(bad) < 2:
            bad.append(text[:300].decode("utf-8", "replace"))


def cut(text, most):
    text = text.encode("utf-8", "replace").decode()
    while len(json.dumps(text)) > most:
        text = text[: len(text) * 9 // 10]
    return text


def named(counter, most):
    found = collections.Counter()
    for place, name in enumerate(sorted(counter, key=lambda name: (name != "200", -counter[name]))):
        found[cut(name, most) if place < 8 else "others"] += counter[name]
    return found


def message(limit):
    for most in (1000, 500, 250, 60):
        found = {"statuses": named(statuses, most), "versions": named(versions, most), "arms": named(arms, most)}
        text = json.dumps({**found, "scored": scored[0], "bad": [cut(text, most) for text in bad]})
        if len(text) <= limit:
            return text


start, threads = time.monotonic(), []
for number in range(count):
    wait = start + number / rate - time.monotonic()
    if wait > 0:
        time.sleep(wait)
    threads.append(threading.Thread(target=ask, args=(number,)))
    threads[-1].start()
for thread in threads:
    thread.join()
with open(env.get("PROBE_RESULT", "/dev/termination-log"), "w") as file:
    file.write(message(4096))
"""


class Probed(Frozen):
    """What became of the requests of a probe.

    Attributes:
        statuses: requests by HTTP status, or by the name of the error where there was no answer.
        versions, arms: answered requests by version, and by the arm that served.
        scored: finite scores in the answers.
        bad: the first answers that were not 200.
    """

    statuses: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, int] = Field(default_factory=dict)
    arms: dict[str, int] = Field(default_factory=dict)
    scored: int = 0
    bad: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """Requests without an answer of status 200."""
        return sum(number for status, number in self.statuses.items() if status != "200")

    @property
    def total(self) -> int:
        return sum(self.statuses.values())


def start_probe(
    api: Api,
    url: str,
    like: Json,
    *,
    service: str,
    body: str = EMPTY_ROW,
    unit: str = "",
    rate: float = 50.0,
    count: int = 1,
    tries: int = 1,
    limit_s: int = 120,
) -> str:
    """Start a pod that sends requests. Returns its name; :func:`finish_probe` waits for it.

    Args:
        url: of the predictor or the gateway, as pods see it.
        like: pod template of a predictor, whose image and pull secrets are used.
        unit: value of ``x-experiment-unit``; ``{n}`` becomes the number of the request.
        rate, count: requests a second, and in all.
        tries: attempts per request, two seconds apart: the name of a new Service takes a moment to resolve.
    """
    containers = like["spec"]["containers"]
    image = next((c["image"] for c in containers if c["name"] == CONTAINER), containers[0]["image"])
    env = {
        "PROBE_URL": url,
        "PROBE_BODY": body,
        "PROBE_UNIT": unit,
        "PROBE_RATE": str(rate),
        "PROBE_COUNT": str(count),
        "PROBE_TRIES": str(tries),
    }
    name = f"{service}-probe-{uuid.uuid4().hex[:8]}"
    api.create(PODS, probe_pod(name, image, like["spec"].get("imagePullSecrets", []), SCRIPT, env, limit_s))
    return name


def finish_probe(
    api: Api, name: str, *, limit_s: float, poll_s: float = 1.0, renew: Callable[[], None] = lambda: None
) -> Probed:
    """Wait for a probe, remove its pod and return what became of its requests.

    Raises:
        RolloutError: the pod does not run or has no result.
    """
    end = time.monotonic() + limit_s
    try:
        while True:
            renew()
            pod = api.get(PODS, name)
            if pod is None:
                raise RolloutError(f"the pod {name} was deleted before it had a result: run the command again")
            phase = pod.get("status", {}).get("phase", "")
            if phase in ("Succeeded", "Failed"):
                return _result(pod)
            if time.monotonic() >= end:
                faults = "; ".join(fault.text for fault in pod_faults(api, [pod])) or f"it is {phase or 'not started'}"
                raise RolloutError(
                    f"the pod {name}, which sends the test request, has no result after {limit_s:.0f} s ({faults}): see "
                    f"`kubectl describe pod -n {api.namespace} -l app.kubernetes.io/component=probe`"
                )
            api.sleep(poll_s)
    finally:
        api.delete(PODS, name, "Background")


def _result(pod: Json) -> Probed:
    statuses = pod.get("status", {}).get("containerStatuses", [])
    ended: Json = next((s["state"]["terminated"] for s in statuses if "terminated" in s.get("state", {})), {})
    text = ended.get("message", "")
    try:
        return Probed.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        why = pod.get("status", {}).get("reason") or ended.get("reason") or "no message"
        raise RolloutError(
            f"the pod {pod['metadata']['name']}, which sends the test request, ended without a result ({why}, "
            f"exit {ended.get('exitCode')}, {' '.join(text.split())[:200]!r}): build the image of the predictor with /opt/venv/bin/python, as images/ does"
        ) from None


def check_smoke(probed: Probed, version: str, url: str) -> None:
    """Whether a version scores.

    Raises:
        RolloutError: it does not answer, answers without a score, or another version answers.
    """
    if probed.failed or not probed.total:
        status = next((status for status in probed.statuses if status != "200"), "no request was sent")
        told = next((line for text in probed.bad if (line := " ".join(text.split()))), "no text")
        raise RolloutError(f"the test request to {url} got {printable(status)}: {printable(told)}")
    from thinktwice.release.model_store import version_folder

    served = sorted({version_folder(name) for name in probed.versions})
    if served != [version]:
        raise RolloutError(
            f"the test request to {url} was answered by {', '.join(served) or 'no version'} instead of {version}"
        )
    if not probed.scored:
        raise RolloutError(
            f"the test request to {url} was answered without a score: look into the log of the predictor"
        )


def remove_probes(api: Api, service: str) -> None:
    """Remove the pods of probes that a killed process has left."""
    selector = "app.kubernetes.io/component=probe,app.kubernetes.io/managed-by=thinktwice-rollout"
    for pod in api.list(PODS, labelSelector=selector):
        if pod["metadata"]["name"].startswith(f"{service}-probe-"):
            api.delete(PODS, pod["metadata"]["name"], "Background")
