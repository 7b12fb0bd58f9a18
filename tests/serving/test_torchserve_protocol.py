"""What TorchServe's front end and a worker say to each other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.adapters.torchserve_protocol import (
    MAX_HEADERS,
    MAX_STEPS,
    ConnectionEndedError,
    Load,
    Predict,
    ProtocolError,
    Reader,
    answer,
    loaded,
)
from tests.serving import front_end
from tests.serving.front_end import END, INT, FrontEnd, predict, sized

HEADERS = st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=40), max_size=20)
INPUTS = st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=40)), max_size=6)


@contextmanager
def sent(message: bytes, cuts: Sequence[int] = ()) -> Iterator[socket.socket]:
    """The other end of a connection over which a message comes, in pieces that end at ``cuts``."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        at = 0
        for cut in (*sorted(cuts), len(message)):
            theirs.sendall(message[at:cut])
            at = max(at, cut)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with ours, theirs:
            yield ours
            thread.join()
    finally:
        thread.join()


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=40), HEADERS, st.binary(max_size=2000), st.data())
def test_a_request_is_read_however_it_comes(
    name: bytes, headers: dict[bytes, bytes], body: bytes, data: st.DataObject
) -> None:
    message = predict(name, headers, [(b"body", b"application/json", body)])
    cuts = data.draw(st.lists(st.integers(0, len(message)), max_size=6))
    with sent(message, cuts) as connection:
        reader = Reader(connection)
        assert reader.read() == Predict(name, headers, body)
        assert reader.between_messages


@settings(deadline=None)
@given(st.lists(st.tuples(HEADERS, INPUTS), min_size=1, max_size=4))
def test_requests_follow_each_other_whatever_their_inputs(
    requests: list[tuple[dict[bytes, bytes], list[front_end.Input]]],
) -> None:
    messages = [predict(b"r%d" % i, headers, inputs) for i, (headers, inputs) in enumerate(requests)]
    with sent(b"".join(messages)) as connection:
        reader = Reader(connection)
        for number, (headers, inputs) in enumerate(requests):
            alone = len(inputs) == 1 and inputs[0][0] == b"body"
            assert reader.read() == Predict(b"r%d" % number, headers, inputs[0][2] if alone else None)
        assert reader.between_messages


@pytest.mark.parametrize("count", [2, 63, 64, 65, 66, 129, 500, MAX_STEPS - 1])
@pytest.mark.parametrize(
    "inputs",
    [[(b"a", b"", b"")], [(b"a", b"", b""), (b"", b"", b"bc")], [(b"\xff" * 8, b"text/plain", b"\xff" * 4)]],
    ids=["alike", "mixed", "like an end"],
)
def test_a_form_of_any_number_of_fields_is_stepped_over(count: int, inputs: list[front_end.Input]) -> None:
    fields = [inputs[i % len(inputs)] for i in range(count)]
    after = predict(b"next", {}, [(b"body", b"", b"{}")])
    with sent(predict(b"form", {b"a": b"b"}, fields) + after, [100, 1000]) as connection:
        reader = Reader(connection)
        assert reader.read() == Predict(b"form", {b"a": b"b"}, None)
        assert reader.read() == Predict(b"next", {}, b"{}")


@pytest.mark.parametrize("kind", ["alike", "mixed", "like an end"])
def test_a_form_of_very_many_fields_ends_where_nothing_more_comes(kind: str) -> None:
    """The front end sends nothing more before it has its answer."""
    shapes: dict[str, list[front_end.Input]] = {
        "alike": [(b"a", b"", b"")],
        "mixed": [(b"a", b"", b""), (b"", b"", b"bc")],
        "like an end": [(b"\xff" * 8, b"", b"\xff" * 8), (b"\xff" * 16, b"", b"")],
    }
    form = predict(b"form", {}, shapes[kind] * 50_000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        end = FrontEnd(theirs)
        reader = Reader(ours)

        def work() -> None:
            for _ in range(2):
                message = reader.read()
                assert isinstance(message, Predict)
                said.append(message)
                ours.sendall(answer(message.id, 400, "Bad Request", {}, b""))

        said: list[Predict] = []
        thread = threading.Thread(target=work)
        thread.start()
        assert end.send(form).request == b"form"
        assert end.send(predict(b"next", {}, [(b"body", b"", b"{}")])).request == b"next"
        thread.join()
        assert said == [Predict(b"form", {}, None), Predict(b"next", {}, b"{}")]


def test_headers_beyond_what_is_kept_are_left_behind() -> None:
    headers = {b"h%d" % i: b"v" for i in range(3 * MAX_HEADERS)} | {b"long": b"x" * 100_000}
    with sent(predict(b"r", headers, [(b"body", b"", b"1")])) as connection:
        message = Reader(connection).read()
    assert isinstance(message, Predict)
    assert len(message.headers) == MAX_HEADERS and message.body == b"1"


def test_a_model_is_asked_for() -> None:
    with sent(front_end.load("ctr", "/tmp/models/x")) as connection:
        assert Reader(connection).read() == Load("ctr", "/tmp/models/x")


@given(st.binary(min_size=1, max_size=200))
def test_what_is_no_message_never_reads_as_one_of_another_length(garbage: bytes) -> None:
    """It ends the connection, or waits for more of it; it does not run away with memory."""
    with sent(garbage) as connection:
        connection.settimeout(0.001)
        message = None
        with suppress(ProtocolError, TimeoutError, ConnectionEndedError, UnicodeDecodeError):
            message = Reader(connection).read()
    assert message is None or isinstance(message, Load | Predict), "whatever else it raises is a fault"


@pytest.mark.parametrize(
    "message",
    [
        b"X",
        b"I" + END,
        b"I" + sized(b"r") + INT.pack(-2),
        b"I" + sized(b"r") + END + sized(b"body") + sized(b"") + END,
        b"I" + sized(b"r") + END + sized(b"body") + sized(b"") + sized(b"") + END + sized(b"another"),
        b"I" + sized(b"r") + END + (sized(b"a") + sized(b"") + sized(b"")) * 2 + sized(b"b") + INT.pack(-7) + bytes(8),
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with sent(message) as connection, pytest.raises(ProtocolError):
        Reader(connection).read()


@pytest.mark.parametrize("length", [0, 1, 10, 30])
def test_an_end_within_a_message_is_an_end(length: int) -> None:
    message = predict(b"request", {b"name": b"value"}, [(b"body", b"", b"{}")])[:length]
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(message)
        theirs.close()
        with pytest.raises(ConnectionEndedError):
            Reader(ours).read()


@given(
    st.binary(min_size=1, max_size=40),
    st.integers(100, 599),
    st.text(st.characters(codec="ascii"), max_size=20),
    st.binary(max_size=500),
)
def test_answers_are_what_the_front_end_reads(request: bytes, status: int, phrase: str, body: bytes) -> None:
    headers = {"content-type": "application/json", "x-request-id": "ü"}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(loaded()[:0] + answer(request, status, phrase, headers, body))
        said = FrontEnd(theirs).answer()
    assert (said.request, said.status, said.phrase, said.headers, said.body) == (request, status, phrase, headers, body)
