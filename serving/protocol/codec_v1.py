"""KServe v1: ``{"instances": [request, ...]}`` in, ``{"predictions": [answer, ...]}`` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import orjson
from pydantic import create_model

from serving.protocol.faults import Checked, Fault, json_path
from serving.protocol.requests import Request, RequestParser, Strict
from thinktwice.records.answer import AnswerField, Scored, answer_fields

INSTANCES = 'send {"instances": [...]} or an Open Inference v2 body'


@dataclass(frozen=True)
class V1Call:
    """The requests of a v1 body."""

    requests: list[Request]

    def field(self, request: int, *loc: str | int) -> str:
        """Path in the body of a part of a request."""
        return json_path()(("instances", request, *loc))

    def encode(self, answers: Sequence[Scored]) -> tuple[bytes, bytes]:
        """The JSON of the response, and the binary data after it (none in v1)."""
        return b'{"predictions":[' + b",".join(map(answer_text, answers)) + b"]}", b""


class V1:
    """The protocol for one model."""

    def __init__(self, parser: RequestParser) -> None:
        self.body: Any = create_model("V1Body", __base__=Strict, instances=(parser.model.requests, ...))
        words = replace(parser.model.words, missing={**parser.model.words.missing, "instances": INSTANCES})
        self._parser, self._checked = parser, Checked[Any](self.body, words)

    def read(self, body: Any, tail: bytes = b"") -> V1Call:
        """Parse a body; ``tail`` is the data after its JSON.

        Raises:
            RequestError: names the first invalid field.
        """
        try:
            if tail:
                reason = f"has {len(tail)} bytes after the JSON: only v2 requests may have binary data"
                raise Fault((), reason, kind="trailing_bytes")
            return V1Call(self._of_forms(self._checked.read(body).instances))
        except Fault as fault:
            raise fault.error(json_path()) from None

    def _of_forms(self, forms: list[Any]) -> list[Request]:
        try:
            return self._parser.of_forms(forms)
        except Fault as fault:
            raise fault.below("instances") from None


@dataclass(frozen=True)
class _Layout:
    """Where the fields of answers of one class are encoded, for candidates or for raw rows."""

    rows: tuple[AnswerField, ...]  # one value per entry
    repeated: tuple[AnswerField, ...]  # at the end of each entry
    whole: tuple[AnswerField, ...]  # next to the list of entries

    @cached_property
    def names(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Key and attribute of each field of the three kinds."""
        return tuple(tuple((f.key, f.name) for f in fields) for fields in (self.rows, self.repeated, self.whole))


@lru_cache
def layout(answer: type, looked_up: bool) -> _Layout:
    """Where the fields of an answer class are encoded."""
    encoded = [f for f in answer_fields(answer) if f.key and (looked_up or not f.looked_up)]
    rows, repeated = (tuple(f for f in encoded if selects(f)) for selects in (lambda f: f.rows, lambda f: f.repeated))
    return _Layout(rows, repeated, tuple(f for f in encoded if not f.rows))


def encode_answer(answer: Scored) -> dict[str, Any]:
    """``{"items": [...], ...}`` for candidates, ``{"rows": [...], ...}`` for raw rows."""
    looked_up = answer.item_ids is not None
    kind: type = type(answer)
    rows, repeated, whole = layout(kind, looked_up).names
    values, order = vars(answer), answer.order
    in_order = order == tuple(range(len(answer.probability)))  # as without k: the columns are already in this order
    # Column by column into copies of one entry: one dict(zip(...)) per entry takes more than twice as long.
    entry: dict[str, Any] = {} if looked_up else {"row": None}
    for key, _ in rows:
        entry[key] = None
    for key, name in repeated:
        entry[key] = values[name]
    entries = [entry.copy() for _ in order]
    if not looked_up:
        for entry, row in zip(entries, order, strict=True):
            entry["row"] = row
    for key, name in rows:
        column = values[name] if in_order else [values[name][row] for row in order]
        for entry, value in zip(entries, column, strict=True):
            entry[key] = value
    out: dict[str, Any] = {"items" if looked_up else "rows": entries}
    for key, name in whole:
        out[key] = values[name]
    return out


def answer_text(answer: Scored) -> bytes:
    """The JSON of :func:`encode_answer`, made of the texts of whole columns, which takes half as long."""
    looked_up, order, values, number = answer.item_ids is not None, answer.order, vars(answer), len(answer.order)
    kind: type = type(answer)
    rows, repeated, whole = layout(kind, looked_up).names
    in_order = order == tuple(range(len(answer.probability)))
    before, columns = [], []  # what precedes each column that varies, and the texts of its values
    if not looked_up:
        before, columns = [b',"row":'], [orjson.dumps(order)[1:-1].split(b",")]
    text = b""
    for key, name in rows:
        column = values[name] if in_order else [values[name][row] for row in order]
        text += b',"%b":' % key.encode()
        if number and type(column[0]) is not float and column.count(column[0]) == number:  # floats: 0.0 == -0.0
            text += orjson.dumps(column[0])
            continue
        texts, quote = _texts(column)
        if len(texts) != number:
            return orjson.dumps(encode_answer(answer))
        before.append(text + quote)
        columns.append(texts)
        text = quote
    if not columns or not number:
        return orjson.dumps(encode_answer(answer))
    after = b"".join([text, *(_pair(key, values[name]) for key, name in repeated), b"}"])
    start = b"{" + before[0][1:]
    width = 2 * len(columns)
    parts = [b""] * (width * number)
    for position, (ahead, texts) in enumerate(zip([after + b"," + start, *before[1:]], columns, strict=True)):
        parts[2 * position :: width] = [ahead] * number
        parts[2 * position + 1 :: width] = texts
    parts[0] = (b'{"items":[' if looked_up else b'{"rows":[') + start
    return b"".join([*parts, after, b"]", *(_pair(key, values[name]) for key, name in whole), b"}"])


def _pair(key: str, value: Any) -> bytes:
    return b',"%b":%b' % (key.encode(), orjson.dumps(value))


def _texts(column: Sequence[Any]) -> tuple[list[bytes], bytes]:
    """The JSON texts of the values of a column, and the quote around them; another number of texts if they cannot be told apart."""
    text = orjson.dumps(column)
    if b'"' not in text:
        return text[1:-1].split(b","), b""
    # An escaped quote may look like the end of a text. Values of which some are not texts give fewer.
    return ([] if b"\\" in text else text[2:-2].split(b'","')), b'"'
