"""A Kubernetes API server of our own, as a process: all objects of one namespace over HTTP, and TrainJobs as ``tests.components.kubernetes_api``
serves them.

It refuses what a real one would: unknown fields (against the definitions, where they are given), what KServe's webhooks deny, conflicts of
field managers and of resource versions. ``tests.cluster.platform`` is what acts on the objects. ``PUT /control`` sets faults of coming
requests (see ``kubernetes_api``), broken versions and the settings of the platform. Absolute URLs, as a proxy gets them, are requests to
addresses inside the cluster.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cluster.objects_store import ConflictError, Json, Store
from tests.cluster.platform import Platform
from tests.components import kubernetes_api
from tests.manifests import closed_schema, kserve_admission

NAMESPACE = kubernetes_api.NAMESPACE
OBJECT = re.compile(r"/(?:api/v1|apis/([^/]+)/([^/]+))/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(?:/(log))?")
KINDS = {
    *("inferenceservices", "servingruntimes", "deployments", "revisions", "httproutes", "horizontalpodautoscalers", "pods", "events"),
    *("configmaps", "leases", "services", "serviceaccounts", "secrets", "networkpolicies", "poddisruptionbudgets", "statefulsets"),
    *("persistentvolumeclaims", "roles", "rolebindings", "scaledobjects"),
}  # fmt: skip
SETTINGS = ("broken", "silent", "gateway_api", "weights", "lag", "spread", "ready_s")


class Handler(kubernetes_api.Handler):
    """One request."""

    store = Store()
    platform = Platform(store, NAMESPACE)
    schemas: Path | None = None
    kinds = KINDS

    def do_any(self) -> None:
        if self.path.startswith("http://"):
            return self.data_plane()
        return super().do_any()

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_any

    def data_plane(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        with kubernetes_api.LOCK:
            status, body, headers = self.platform.answer(self.path, self.headers)
        data = json.dumps(body).encode()
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def control(self, change: Json) -> None:
        if change.get("reset"):
            self.platform.close()
            type(self).store = Store()
            type(self).platform = Platform(self.store, NAMESPACE)
            self.platform.port = self.server.server_address[1]  # type: ignore[assignment]
            type(self).kinds = KINDS
        for name in SETTINGS:
            if name in change:
                setattr(self.platform, name, change.pop(name))
        if "kinds_gone" in change:
            type(self).kinds = KINDS - set(change.pop("kinds_gone"))
        for plural, value in change.pop("objects", []):
            manager = value.get("metadata", {}).pop("manager", "kubectl-client-side-apply")
            self.store.put(plural, value, manager)
            self.platform.changed(plural, value["metadata"]["name"])
        kubernetes_api.STATE["restarts"] = list(self.platform.restarts)
        kubernetes_api.STATE["store"] = [[kind, stored.value] for (kind, _), stored in self.store.objects.items()]
        super().control(change)

    def answer_to(self, path: str, body: bytes, quiet: bool = False) -> None:
        match = OBJECT.fullmatch(path)
        if match is None or match[4] == "trainjobs":
            return super().answer_to(path, body, quiet)
        send, refuse = (self.send, self.refuse) if not quiet else (lambda *_: None, lambda *_: None)
        namespace, plural, name, part = match[3], match[4], match[5], match[6]
        if namespace != NAMESPACE:
            return refuse(404, f'namespaces "{namespace}" not found')
        if plural not in self.kinds:
            return refuse(404, "404 page not found")
        self.platform.tick()
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        value = json.loads(body) if body and self.command != "DELETE" else {}
        if part == "log":
            text = self.platform.log(name or "")
            return refuse(404, f'pods "{name}" not found') if text is None else send(200, text)
        if self.command == "GET" and name is None:
            return send(200, {"kind": "List", "items": [o for o in self.store.all(plural) if _selected(o, query)]})
        if self.command == "GET":
            found = self.store.get(plural, name or "")
            return refuse(404, f'{plural} "{name}" not found') if found is None else send(200, found)
        if self.command == "DELETE":
            gone = self.store.delete(plural, name or "")
            if gone is None:
                return refuse(404, f'{plural} "{name}" not found')
            self.platform.changed(plural, name or "")
            return send(200, gone)
        return self.write(plural, name or value["metadata"]["name"], value, query, send, refuse)

    def write(self, plural: str, name: str, value: Json, query: Json, send: Any, refuse: Any) -> None:
        before = self.store.get(plural, name)
        if self.command == "POST" and before is not None:
            return refuse(409, f'{plural} "{name}" already exists')
        if self.command == "PUT":
            if before is None:
                return refuse(404, f'{plural} "{name}" not found')
            if value["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
                return refuse(409, f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified')
        stored = None
        if self.command == "PATCH":
            if self.headers["content-type"] != "application/apply-patch+yaml" or not query.get("fieldManager"):
                return refuse(415, "only server-side apply is served here, with a field manager")
            try:
                stored = self.store.planned(plural, value, query["fieldManager"], query.get("force") == "true")
            except ConflictError as error:
                return self.conflict(error, refuse)
            value = stored.value
        if refusals := self.refusals(value, before):
            return refuse(*refusals)
        if stored is not None:
            result = self.store.commit(plural, stored)
        else:
            result = self.store.put(plural, value, query.get("fieldManager", "client"))
        self.platform.changed(plural, name)
        return send(201 if before is None else 200, result)

    def refusals(self, value: Json, before: Json | None) -> tuple[int, str] | None:
        """Status and message, as the API server and KServe's webhook give them."""
        if value.get("kind") != "InferenceService":
            return None
        if self.schemas is not None:
            plain = {key: part for key, part in value.items() if key != "status"}
            keep = ("name", "namespace", "labels", "annotations")
            plain["metadata"] = {key: part for key, part in value["metadata"].items() if key in keep}
            if found := closed_schema.errors(plain, self.schemas):
                return 422, "; ".join(found)
        denied = kserve_admission.refused(value) + (kserve_admission.update_refused(before, value) if before else [])
        if denied:
            return (
                400,
                f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {denied[0]}',
            )
        return None

    def conflict(self, error: ConflictError, refuse: Any) -> None:
        causes = [
            {
                "reason": "FieldManagerConflict",
                "message": f'conflict with "{manager}" using serving.kserve.io/v1beta1',
                "field": field,
            }
            for manager, field in error.causes
        ]
        text = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
        status = {
            "kind": "Status",
            "status": "Failure",
            "reason": "Conflict",
            "code": 409,
            "details": {"causes": causes},
        }
        if refuse == self.refuse:
            self.send(409, {**status, "message": f"Apply failed with {len(causes)} conflict(s): {text}"})


def _selected(value: Json, query: Json) -> bool:
    labels = value.get("metadata", {}).get("labels", {})
    wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    fields = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
    return all(labels.get(k) == v for k, v in wanted.items()) and all(value.get(k) == v for k, v in fields.items())


class Server(ThreadingHTTPServer):
    """Bursts of new connections wait and are not reset."""

    request_queue_size = 512
    daemon_threads = True


def main(schemas: str) -> None:
    Handler.schemas = Path(schemas) if schemas else None
    server = Server(("127.0.0.1", 0), Handler)
    Handler.platform.port = server.server_address[1]

    def clock() -> None:
        while True:
            time.sleep(0.05)
            with kubernetes_api.LOCK, suppress(KeyError):
                Handler.platform.tick()

    threading.Thread(target=clock, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
