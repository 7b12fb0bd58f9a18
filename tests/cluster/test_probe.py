"""The probe's result, whatever a server answers."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.deployment.rollout.probe import SCRIPT, Probed, check_smoke
from thinktwice.errors import RolloutError
from thinktwice.printable import printable


class Anything(BaseHTTPRequestHandler):
    """Gives the request of the unit N the answer number N."""

    answers: ClassVar[list[tuple[int, bytes, str]]] = []

    def do_POST(self) -> None:
        status, body, arm = self.answers[int(self.headers["x-experiment-unit"])]
        self.send_response(status)
        self.send_header("x-served-arm", arm)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server_of_anything() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Anything)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def answered(value: object, count: int = 1) -> bytes:
    rows = [{"probability": value}]
    return json.dumps({"predictions": [{"model_version": value, "rows": rows}] * count}).encode()


#: Long, of characters that JSON writes with 6 or 12 bytes each; none of them, half a character at the limit of 300 bytes; no text at all.
WIDE = st.sampled_from(["\u0001", "\u00e4", "\u732b", "\U0001f408", "\ud83d", '"', "x"]).map(lambda text: text * 400)
BODIES = (
    (st.text(max_size=9) | st.just("")).flatmap(lambda start: WIDE.map(lambda wide: (start + wide).encode("utf-8", "surrogatepass")))
    | st.binary(max_size=400)
    | (WIDE | st.sampled_from([0.5, 10**400, None, [], {}])).map(answered)
)  # fmt: skip
ARMS = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f\x85\xa0"), max_size=900)


@settings(max_examples=20)
@given(answers=st.lists(st.tuples(st.sampled_from([200, 400, 500, 503]), BODIES, ARMS), min_size=1, max_size=12))
@example(answers=[(500, "\u732b".encode() * 100, "")] * 2)
@example(answers=[(500, b"\xff" * 300, "")] * 2)
@example(answers=[(200, answered("\U0001f408" * 400), str(n) + "\u00e4" * 800) for n in range(12)])
def test_the_result_of_a_probe_fits_the_termination_message_whatever_is_answered(
    server_of_anything: str, answers: list[tuple[int, bytes, str]]
) -> None:
    """Two long bodies in another script than Latin took more than the 4,096 bytes of which Kubernetes keeps the last."""
    Anything.answers = answers
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        result = Path(folder) / "termination-log"
        for name, value in {
            "URL": server_of_anything,
            "BODY": "{}",
            "UNIT": "{n}",
            "RATE": "1000",
            "TRIES": "1",
            "RESULT": str(result),
        }.items():
            patch.setenv(f"PROBE_{name}", value)
        patch.setenv("PROBE_COUNT", str(len(answers)))
        exec(compile(SCRIPT, "probe", "exec"), {})
        written = result.read_bytes()
    assert len(written) <= 4096
    probed = Probed.model_validate(json.loads(written.decode()))
    assert probed.total == len(answers) and (not probed.failed) == (not probed.bad)
    assert probed.failed >= sum(status != 200 for status, _, _ in answers)
    if probed.failed:
        with pytest.raises(RolloutError, match=r"the test request to u got \S+.*: ") as raised:
            check_smoke(probed, "v", "u")
        told = str(raised.value)
        assert "\n" not in told and len(told) < 6000
        starts = [" ".join(body[:300].decode("utf-8", "replace").split())[:9] for _, body, _ in answers]
        assert any(printable(start) in told for start in starts if start) or told.endswith(": no text")
        assert told.endswith(": no text") <= any(not start for start in starts)
