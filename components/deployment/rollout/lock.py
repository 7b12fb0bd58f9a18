"""One roll-out of a service at a time, and what it has done so far, in one Lease: ``SERVICE-rollout``.

A holder renews the Lease while it works. Another process that finds it held watches it: if it is renewed, a roll-out runs, and the
newcomer is refused; if it is not renewed for the Lease's duration, the holder was killed, and the newcomer goes on where it
stopped. Only the watcher's own clock is used, so clocks of different machines may differ.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from datetime import datetime, timezone
from typing import Literal

from pydantic import ValidationError

from components.cluster.client import Api, Json
from components.deployment.rollout.objects import LEASES, PART_OF, Form, Version
from thinktwice.errors import RolloutError, reason
from thinktwice.experiment.file import ExperimentFile
from thinktwice.frozen import Frozen

STATE = "thinktwice.dev/rollout"  # annotation with the state
DURATION_S = 15
POLL_S = 1.0

#: The last two are of experiments, which have ``promote`` and ``rollback`` too.
Action = Literal["", "canary", "promote", "rollback", "start", "weight"]


class State(Frozen):
    """What a roll-out of a service has done.

    Attributes:
        action: the action that was begun and is not finished; "" for none.
        stable: what serves, or served before the action that was begun; for a roll-back, what is to serve.
        served: for a roll-back, what served when it was begun, and serves again if ``stable`` does not start.
        canary: what gets a share beside it, or is to get it.
        previous: what served before the last promotion.
        percent: share of the canary.
        min_replicas: of the stable predictor before the canary; None if it was not set.
        experiment: with arms, the file of the experiment that the routes follow.
    """

    format: int = 1
    form: Form
    action: Action = ""
    stable: Version
    served: Version | None = None
    canary: Version | None = None
    previous: Version | None = None
    percent: int = 0
    min_replicas: int | None = None
    experiment: ExperimentFile | None = None


class LostLockError(RolloutError):
    """Another process has taken over the roll-out."""


def lease_name(service: str) -> str:
    return f"{service}-rollout"


def read_state(api: Api, service: str) -> State | None:
    """What roll-outs of a service have done; None if there was none."""
    lease = api.get(LEASES, lease_name(service))
    return None if lease is None else _state(lease)


class Lock:
    """The held Lease; a context manager.

    Args:
        duration_s: seconds without renewal after which another process may take over.
        poll_s: seconds between two looks at a Lease that another process holds.

    Raises (when entered):
        RolloutError: another roll-out of the service runs.
    """

    def __init__(self, api: Api, service: str, *, duration_s: int = DURATION_S, poll_s: float = POLL_S) -> None:
        self._api, self._service, self._duration, self._poll = api, service, duration_s, poll_s
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lease: Json = {}
        self._renewed = 0.0
        self.state: State | None = None

    def __enter__(self) -> Lock:
        watched: tuple[str, str] | None = None
        since = time.monotonic()
        while True:
            lease = self._api.get(LEASES, lease_name(self._service))
            if lease is None:
                created = self._api.create(LEASES, self._content({}, None))
                if created is not None:
                    self._take(created)
                    return self
                continue  # somebody else was faster, or the answer to our own creation was lost
            spec = lease.get("spec", {})
            holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
            if holder == self.holder:
                self._take(lease)
                return self
            now = time.monotonic()
            if watched is None:
                watched, since = (holder, renewed), now
            elif watched != (holder, renewed) and holder:
                raise RolloutError(self._busy(lease, holder))
            if not holder or now - since >= float(spec.get("leaseDurationSeconds") or self._duration):
                if self._write(lease, _state(lease)):
                    return self
                watched = None
                continue
            self._api.sleep(self._poll)

    def __exit__(self, *_: object) -> None:
        """Release the Lease, so that the next command need not wait. A failure to do so only costs that wait."""
        try:
            self._lease["spec"]["holderIdentity"] = ""
            self._api.ask("PUT", LEASES, lease_name(self._service), body=self._lease, allow=(404, 409))
        except Exception:  # noqa: BLE001 (the error of the block is the one to show)
            return

    def save(self, state: State) -> None:
        """Record what is done, and keep the Lease.

        Raises:
            LostLockError: another process has taken over.
        """
        lease = self._lease
        while not self._write(lease, state):
            lease = self._own()

    def renew(self) -> None:
        """Keep the Lease, if a third of its duration has passed; before every change and during every wait."""
        if time.monotonic() - self._renewed >= self._duration / 3:
            if self.state is None:
                raise LostLockError(f"the lease {lease_name(self._service)} was not taken")
            self.save(self.state)

    def _own(self) -> Json:
        """The Lease as it is now, after an answer to a write was lost or another process wrote."""
        lease = self._api.get(LEASES, lease_name(self._service))
        if lease is None or lease.get("spec", {}).get("holderIdentity") != self.holder:
            raise LostLockError(
                f"another process has taken over the roll-out of {self._service}, so this one stops: "
                f"see `thinktwice rollout status --service {self._service}`"
            )
        return lease

    def _write(self, lease: Json, state: State | None) -> bool:
        answer = self._api.ask(
            "PUT", LEASES, lease_name(self._service), body=self._content(lease, state), allow=(404, 409)
        )
        if answer.ok:
            self._take(answer.body)
        return answer.ok

    def _take(self, lease: Json) -> None:
        self._lease, self.state, self._renewed = lease, _state(lease), time.monotonic()

    def _content(self, lease: Json, state: State | None) -> Json:
        metadata = {**lease.get("metadata", {}), "name": lease_name(self._service)}
        metadata["labels"] = {**metadata.get("labels", {}), **PART_OF}
        annotations = dict(metadata.get("annotations", {}))
        if state is not None:
            annotations[STATE] = json.dumps(state.model_dump(mode="json", exclude_none=True), sort_keys=True)
        metadata["annotations"] = annotations
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {**lease.get("spec", {}), "holderIdentity": self.holder, "leaseDurationSeconds": self._duration}
        if lease.get("spec", {}).get("holderIdentity") != self.holder:
            spec["acquireTime"] = now
        spec["renewTime"] = now
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    def _busy(self, lease: Json, holder: str) -> str:
        state = _state(lease)
        doing = f"{state.action} of {(state.canary or state.stable).name}" if state and state.action else "a roll-out"
        return (
            f"{doing} of the service {self._service} runs already (by {holder}, since {lease['spec'].get('acquireTime', '')[:19]}): "
            f"wait for it; `thinktwice rollout status --service {self._service}` shows how far it is"
        )


def _state(lease: Json) -> State | None:
    text = lease.get("metadata", {}).get("annotations", {}).get(STATE)
    if text is None:
        return None
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        raise RolloutError(
            f"the annotation {STATE} of the lease {lease['metadata']['name']} cannot be read ({reason(error)}): it was written by "
            "another version of thinktwice; delete the lease after making sure that no canary is left"
        ) from error
