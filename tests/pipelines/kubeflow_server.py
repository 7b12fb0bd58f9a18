"""A server that speaks the API of Kubeflow Pipelines (v2beta1) as far as its client needs for pipelines, runs and schedules.

It is a process of its own: ``python -m tests.pipelines.kubeflow_server PORT [--multi-user] [--token TOKEN]``. Like the real server it parses
an uploaded package into KFP's PipelineSpec, refuses names that exist (409), runs of unknown versions (404) and parameters that the spec does
not have or of another type (400). ``PUT /plan`` sets faults: a list of [method, part of the path, status, how often (-1: always)];
status 0 never answers. ``GET /seen`` is all requests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

API = "/apis/v2beta1"
KINDS = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "STRING": str, "BOOLEAN": bool}


class RefusedError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class State:
    """What the server keeps, by kind and id."""

    def __init__(self, *, multi_user: bool, token: str) -> None:
        self.multi_user, self.token = multi_user, token
        self.objects: dict[str, dict[str, dict[str, Any]]] = {
            kind: {} for kind in ("pipelines", "versions", "experiments", "runs", "recurringruns")
        }
        self.numbers = itertools.count(1)
        self.plan: list[list[Any]] = []
        self.seen: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def fault(self, method: str, path: str) -> int | None:
        for entry in self.plan:
            if entry[0] == method and entry[1] in path and entry[3]:
                entry[3] -= 1
                return int(entry[2])
        return None

    def add(self, kind: str, name: str, value: dict[str, Any], *, unique_in: str = "") -> dict[str, Any]:
        for other in self.objects[kind].values():
            if (
                unique_in
                and other["display_name"] == name
                and all(other.get(key) == value.get(key) for key in unique_in.split(",") if key != "*")
            ):
                raise RefusedError(409, f"Already exist error: {kind} {name} already exists")
        number = f"{kind}-{next(self.numbers)}"
        self.objects[kind][number] = {**value, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
        return self.objects[kind][number] | {"id": number}

    def get(self, kind: str, number: str) -> dict[str, Any]:
        if number not in self.objects[kind]:
            raise RefusedError(404, f"{kind} {number} not found")
        return self.objects[kind][number]

    def found(self, kind: str, query: dict[str, str], **where: str) -> list[dict[str, Any]]:
        wanted = dict(where)
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] in ("EQUALS", 1), predicate
            wanted[predicate["key"]] = predicate.get("stringValue", predicate.get("string_value"))
        rows = [{**value, "id": number} for number, value in self.objects[kind].items()]
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def spec_of(package: str) -> dict[str, Any]:
    documents = list(yaml.safe_load_all(package))
    try:
        json_format.ParseDict(documents[0], PipelineSpec())
    except (json_format.ParseError, IndexError, TypeError) as error:
        raise RefusedError(400, f"Failed to parse the pipeline spec: {error}") from error
    spec: dict[str, Any] = documents[0]
    return spec


def check_parameters(spec: dict[str, Any], given: dict[str, Any]) -> None:
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, value in given.items():
        if name not in known:
            raise RefusedError(400, f"unknown parameter {name}")
        kind = KINDS[known[name]["parameterType"]]
        if not isinstance(value, (int, float) if kind is float else kind):
            raise RefusedError(400, f"parameter {name} must be of type {known[name]['parameterType']}, not {value!r}")
    for name, description in known.items():
        if name not in given and not description.get("isOptional") and "defaultValue" not in description:
            raise RefusedError(400, f"missing parameter {name}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def do_any(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        state = self.state
        if parts.path == "/plan":
            state.plan = json.loads(body)
            return self.answer(200, {})
        if parts.path == "/seen":
            return self.answer(200, {"seen": state.seen, "objects": state.objects})
        with state.lock:
            text = body.decode("utf-8", errors="replace")
            state.seen.append({"method": self.command, "path": self.path, "body": text})
            status = state.fault(self.command, self.path)
        if status == 0:
            time.sleep(60)
            return None
        if status == 200:  # the page of a login
            return self.answer(200, b"<html>Log in</html>", "text/html")
        if status:
            return self.answer(
                status, {"error": "told by the test", "code": 2, "message": "told by the test", "details": []}
            )
        if state.token and self.headers.get("authorization") != f"Bearer {state.token}":
            return self.answer(401, {"message": "Request is unauthenticated", "code": 16})
        try:
            with state.lock:
                return self.answer(200, self.handle_call(parts.path.removeprefix(API), query, body))
        except RefusedError as error:
            return self.answer(error.status, {"error": str(error), "message": str(error), "code": 2, "details": []})

    do_GET = do_POST = do_PUT = do_DELETE = do_any

    def handle_call(self, path: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
        state = self.state
        content = (
            json.loads(body) if body and self.headers.get("content-type", "").startswith("application/json") else {}
        )
        call = (self.command, re.sub(r"/[a-z]+-[0-9]+", "/ID", path))
        number = (re.findall(r"/([a-z]+-[0-9]+)", path) or [""])[0]
        namespace = query.get("namespace", content.get("namespace") or "")
        if state.multi_user and call[1] in ("/experiments", "/pipelines") and not namespace:
            raise RefusedError(400, "Invalid input error: namespace is empty")
        if call == ("GET", "/healthz"):
            return {"commit_sha": "x", "tag_name": "2.17.0", "multi_user": state.multi_user}
        if call == ("GET", "/pipelines"):
            return {"pipelines": [pipeline(p) for p in state.found("pipelines", query)]}
        if call == ("POST", "/pipelines"):
            value = {"namespace": namespace, "name": content.get("name", "")}
            return pipeline(state.add("pipelines", content["display_name"], value, unique_in="namespace"))
        if call == ("POST", "/pipelines/upload"):
            made = state.add("pipelines", query["name"], {"namespace": namespace}, unique_in="namespace")
            spec = spec_of(self.package(body))
            state.add(
                "versions", query["name"], {"pipeline_id": made["id"], "pipeline_spec": spec}, unique_in="pipeline_id"
            )
            return pipeline(made)
        if call == ("POST", "/pipelines/upload_version"):
            state.get("pipelines", query["pipelineid"])
            value = {"pipeline_id": query["pipelineid"], "pipeline_spec": spec_of(self.package(body))}
            return version(state.add("versions", query["name"], value, unique_in="pipeline_id"))
        if call == ("GET", "/pipelines/ID/versions"):
            state.get("pipelines", number)
            return {"pipeline_versions": [version(v) for v in state.found("versions", query, pipeline_id=number)]}
        if call == ("GET", "/experiments"):
            wanted = {"namespace": namespace} if namespace else {}
            return {"experiments": [experiment(e) for e in state.found("experiments", query, **wanted)]}
        if call == ("POST", "/experiments"):
            return experiment(
                state.add("experiments", content["display_name"], {"namespace": namespace}, unique_in="namespace")
            )
        if call in (("POST", "/runs"), ("POST", "/recurringruns")):
            return self.start(path.strip("/"), content)
        if call == ("GET", "/runs/ID"):
            return {**state.get("runs", number), "run_id": number}
        if call == ("GET", "/recurringruns"):
            rows = state.found("recurringruns", query, experiment_id=query["experiment_id"])
            start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 10)
            more = {"next_page_token": str(start + size)} if start + size < len(rows) else {}
            return {"recurringRuns": [recurring(row) for row in rows[start : start + size]], **more}
        if call == ("DELETE", "/recurringruns/ID"):
            state.get("recurringruns", number)
            del state.objects["recurringruns"][number]
            return {}
        raise RefusedError(404, "Not Found")

    def start(self, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        self.state.get("experiments", content["experiment_id"])
        if reference := content.get("pipeline_version_reference"):
            spec = self.state.get("versions", reference["pipeline_version_id"])["pipeline_spec"]
        else:
            spec = content["pipeline_spec"].get("pipeline_spec", content["pipeline_spec"])
            json_format.ParseDict(spec, PipelineSpec())
        check_parameters(spec, content.get("runtime_config", {}).get("parameters", {}))
        if kind == "recurringruns":
            fields = content["trigger"]["cron_schedule"]["cron"].split()
            if len(fields) != 6:
                raise RefusedError(400, f"Expected 6 fields, found {len(fields)}")
            if int(content["max_concurrency"]) < 1:
                raise RefusedError(400, "the maximum concurrency must be between 1 and 10")
            return recurring(self.state.add(kind, content["display_name"], content))
        made = self.state.add(kind, content["display_name"], content)
        return {**made, "run_id": made["id"], "state": "PENDING"}

    def package(self, body: bytes) -> str:
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = BytesParser().parsebytes(head + body).get_payload()
        assert isinstance(parts, list) and len(parts) == 1
        content = parts[0].get_payload(decode=True)
        assert isinstance(content, bytes)
        return content.decode()

    def answer(self, status: int, value: dict[str, Any] | bytes, kind: str = "application/json") -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def pipeline(row: dict[str, Any]) -> dict[str, Any]:
    return {"pipeline_id": row["id"], "display_name": row["display_name"], "namespace": row.get("namespace", "")}


def version(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("pipeline_id", "display_name", "created_at")
    return {"pipeline_version_id": row["id"], **{key: row[key] for key in keys}}


def experiment(row: dict[str, Any]) -> dict[str, Any]:
    return {"experiment_id": row["id"], "display_name": row["display_name"], "namespace": row.get("namespace", "")}


def recurring(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in row.items() if key != "id"},
        "recurring_run_id": row["id"],
        "status": "ENABLED",
    }


class Server:
    """The server as a process, seen from a test."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def plan(self, *faults: list[Any]) -> None:
        self._call("PUT", "/plan", list(faults))

    def objects(self, kind: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self._call("GET", "/seen")["objects"][kind]
        return found

    def seen(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/seen")["seen"]
        return found


@contextmanager
def running(*options: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.pipelines.kubeflow_server", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http"), "the server did not start"
        yield Server(address)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--multi-user", action="store_true")
    parser.add_argument("--token", default="")
    given = parser.parse_args()
    handler = type("Bound", (Handler,), {"state": State(multi_user=given.multi_user, token=given.token)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
