"""A Kubernetes API server of our own, as a process: TrainJobs, pods, logs and events of one namespace over HTTP.

It refuses what the real one would: unknown fields and kinds (against the CustomResourceDefinition), a second object of a name, a namespace that does not
exist. What Trainer would do is told to it: ``PUT /control`` sets the status of jobs, pods, logs, events, and faults of coming requests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.manifests import closed_schema

NAMESPACE = "runs"
STATE: dict[str, Any] = {"jobs": {}, "pods": [], "logs": {}, "events": [], "faults": [], "seen": [], "status": []}
LOCK = threading.Lock()
JOBS = re.compile(r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/([^/]+)/trainjobs(?:/([^/]+))?")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with LOCK:
            path = urlsplit(self.path).path
            if path == "/control":
                return self.control(json.loads(body or b"{}"))
            STATE["seen"].append([self.command, self.path])
            for fault in STATE["faults"]:
                if fault["times"] > 0 and re.search(fault["match"], f"{self.command} {self.path}"):
                    if fault.get("skip", 0) > 0:
                        fault["skip"] -= 1
                        continue
                    fault["times"] -= 1
                    if fault.get("kill"):  # the client, when this request has come; it is carried out all the same
                        os.kill(fault["kill"], signal.SIGKILL)
                        continue
                    if fault.get("cut"):
                        self.close_connection = True
                        return None
                    if not fault.get("after"):
                        return self.refuse(fault["status"], fault.get("message", ""))
                    self.answer_to(path, body, quiet=True)
                    self.close_connection = True
                    return None
            return self.answer_to(path, body)

    do_GET = do_POST = do_DELETE = do_PUT = do_any

    def control(self, change: dict[str, Any]) -> None:
        if change.pop("reset", False):
            STATE.update(jobs={}, pods=[], logs={}, events=[], faults=[], seen=[], status=[])
        STATE.update(change)
        self.send(200, STATE)

    def answer_to(self, path: str, body: bytes, quiet: bool = False) -> None:
        send, refuse = (self.send, self.refuse) if not quiet else (lambda *_: None, lambda *_: None)
        if match := JOBS.fullmatch(path):
            namespace, name = match.groups()
            if namespace != NAMESPACE:
                return refuse(404, f'namespaces "{namespace}" not found')
            return self.jobs(name, body, send, refuse)
        if path == f"/api/v1/namespaces/{NAMESPACE}/pods":
            return send(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": STATE["pods"]})
        if match := re.fullmatch(rf"/api/v1/namespaces/{NAMESPACE}/pods/([^/]+)/log", path):
            if match[1] not in STATE["logs"]:
                return refuse(400, "container is waiting to start")
            return send(200, STATE["logs"][match[1]])
        if path == f"/api/v1/namespaces/{NAMESPACE}/events":
            return send(200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": STATE["events"]})
        return refuse(404, "404 page not found")

    def jobs(self, name: str | None, body: bytes, send: Any, refuse: Any) -> None:
        jobs = STATE["jobs"]
        if self.command == "POST":
            job = json.loads(body)
            if found := closed_schema.errors(job, Path(sys.argv[1])):
                return refuse(422, "; ".join(found))
            name = job["metadata"]["name"]
            if name in jobs:
                return refuse(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
            jobs[name] = job
            return send(201, job)
        if self.command == "GET" and name is None:
            label = parse_qs(urlsplit(self.path).query).get("labelSelector", ["="])[0].split("=")
            items = [job for job in jobs.values() if job["metadata"]["labels"].get(label[0]) == label[1]]
            return send(200, {"kind": "TrainJobList", "items": items})
        if name not in jobs:
            return refuse(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        if self.command == "DELETE":
            return send(200, jobs.pop(name))
        # Each look at a job takes the next of its states; the last one stays.
        states = STATE["status"]
        state = states[0] if len(states) == 1 else states.pop(0) if states else []
        if state == "gone":
            del jobs[name]
            return refuse(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        conditions = [
            {"type": kind, "status": "True", "reason": f"{kind}Reason", "message": "told by the test"} for kind in state
        ]
        return send(200, {**jobs[name], "status": {"conditions": conditions}})

    def refuse(self, status: int, message: str) -> None:
        self.send(status, {"kind": "Status", "status": "Failure", "code": status, "message": message})

    def send(self, status: int, value: Any) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("content-type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
