"""Open Inference v2: one BYTES tensor ``request`` of shape [n] in, each element one request as JSON text; or one request in
tensors by field (:mod:`serving.protocol.v2_fields`). Tensors are JSON or binary (:mod:`serving.protocol.v2_tensors`).

The answers of all n requests are concatenated in flat output tensors; ``request_index`` gives the request of each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, create_model

from serving.protocol import json_text, v2_fields
from serving.protocol.faults import Checked, Fault, Words, custom, json_path, shown
from serving.protocol.requests import MAX_REQUESTS, Limits, Request, RequestParser, Strict
from serving.protocol.v2_tensors import (
    HERE_OR_BEHIND,
    MAX_TENSORS,
    SIZE,
    InputTensor,
    Sizes,
    TensorParameters,
    pack,
    read,
)
from thinktwice.records.answer import DATATYPES, AnswerField, Scored, answer_fields

INPUT = "request"
INDEX = "request_index"  # output: the request that a row belongs to
EMPTY: Mapping[str, Any] = {
    "text": "",
    "boolean": False,
    "number": 0.0,
    "integer": 0,
}  # for raw rows, which have no looked-up values
ELEMENTS = {"inputs": "tensors", "shape": "sizes", "data": "elements", "outputs": "outputs"}


def is_v2(body: Any) -> bool:
    """Whether a body is in the Open Inference protocol. TorchServe does not pass the path to a handler, so the body decides."""
    return isinstance(body, dict) and "inputs" in body and "instances" not in body


@lru_cache
def outputs_of(answer: type) -> dict[str, tuple[str, AnswerField | None]]:
    """The output tensors by name: their datatype and their field."""
    fields = [f for f in answer_fields(answer) if "tensor" in f.v2]
    return {INDEX: ("INT64", None)} | {f.key: (DATATYPES[f.kind], f) for f in fields}


class OutputParameters(Strict):
    """Parameters of a wanted output."""

    binary_data: bool | None = Field(default=None, description="Whether its data are binary.")


class BodyParameters(Strict):
    """Parameters of a body whose requests are JSON texts, which have limits of their own."""

    binary_data_output: bool | None = Field(default=None, description="Whether the data of outputs are binary.")


class FieldsParameters(BodyParameters, Limits):
    """Parameters of a body with one tensor per field."""


class TextTensor(Strict):
    """Requests as JSON texts."""

    model_config = ConfigDict(json_schema_extra=HERE_OR_BEHIND)

    name: Literal[INPUT]  # type: ignore[valid-type]
    datatype: Literal["BYTES"]
    shape: Annotated[Sizes, Field(max_length=1)]
    data: (
        Annotated[
            list[Annotated[str, WithJsonSchema({"type": "string", "contentMediaType": "application/json"})]],
            Field(min_length=1, max_length=MAX_REQUESTS, description="Each element is one Request as JSON text."),
        ]
        | None
    ) = None
    parameters: TensorParameters | None = None


def _other_name(name: str) -> str:
    if name == INPUT:
        raise custom("mixed_inputs", f"must not be {INPUT!r} among others")
    return name


class FieldTensor(InputTensor):
    """The values of one field."""

    name: Annotated[
        str, AfterValidator(_other_name), WithJsonSchema({"type": "string", "minLength": 1, "not": {"const": INPUT}})
    ] = Field(min_length=1)


@dataclass(frozen=True)
class V2Call:
    """The requests of a v2 body.

    Attributes:
        outputs: the requested output tensors, and whether each is binary.
        id: of the body.
        texts: whether the requests were sent as JSON texts.
    """

    requests: list[Request]
    outputs: Mapping[str, bool]
    id: str | None
    model_name: str
    texts: bool

    def field(self, request: int, *loc: str | int) -> str:
        """Path in the body of a part of a request."""
        return json_path()(("inputs", 0, "data", request, *loc) if self.texts else loc)

    def encode(self, answers: Sequence[Scored]) -> tuple[bytes, bytes]:
        """The JSON of the response, and the data of the binary outputs after it."""
        kind: type = type(answers[0])
        outputs_by_name, fields = outputs_of(kind), answer_fields(kind)
        outputs, tail = [], []
        for name, binary in self.outputs.items():
            datatype, field = outputs_by_name[name]
            values = [value for index, answer in enumerate(answers) for value in _column(field, index, answer)]
            output: dict[str, Any] = {"name": name, "shape": [len(values)], "datatype": datatype}
            if binary:
                tail.append(pack(datatype, values))
                output["parameters"] = {SIZE: len(tail[-1])}
            else:
                output["data"] = values
            outputs.append(output)
        flags = [{f.name: _flag(f, getattr(a, f.name)) for f in fields if "flag" in f.v2} for a in answers]
        parameters = {f.name: getattr(answers[0], f.name) for f in fields if "parameter" in f.v2}
        out: dict[str, Any] = {"model_name": self.model_name, "model_version": answers[0].model_version}
        if self.id is not None:
            out["id"] = self.id
        out["parameters"] = {**parameters, "flags": orjson.dumps(flags).decode()}  # values are scalars in this protocol
        out["outputs"] = outputs
        return orjson.dumps(out), b"".join(tail)


def _column(field: AnswerField | None, index: int, answer: Scored) -> Sequence[Any]:
    if field is None:
        return [index] * len(answer.order)
    value = getattr(answer, field.name)
    if not field.rows:
        return [value] * len(answer.order)
    return [value[row] for row in answer.order] if value else [EMPTY[field.kind]] * len(answer.order)


def _flag(field: AnswerField, value: Any) -> Any:
    return sum(value or ()) if field.rows else value


class V2:
    """The protocol for one model.

    Args:
        parser: of the model.
        model_name, model_version: of the model; a body may contain them.
        answer: class of the answers.

    Attributes:
        texts, fields: models of the two forms of a body.
    """

    def __init__(self, parser: RequestParser, model_name: str, model_version: str, answer: type = Scored) -> None:
        self._parser, self._model_name = parser, model_name
        self._names = tuple(outputs_of(answer))
        names: Any = Literal[self._names]
        output_model: Any = create_model(
            "WantedOutput",
            __base__=Strict,
            name=(names, ...),
            parameters=(OutputParameters | None, None),
        )
        common: dict[str, Any] = {
            "id": (str | None, None),
            "model_name": (_only(model_name) | None, None),  # KServe's client sets this too
            "model_version": (_only(model_version) | None, None),
            "outputs": (list[output_model] | None, None),
        }
        several = Field(min_length=1, max_length=MAX_TENSORS, fail_fast=True)
        single = Field(min_length=1, max_length=1)
        self.texts: Any = create_model(
            "V2TextBody",
            __base__=Strict,
            inputs=(Annotated[list[TextTensor], single], ...),
            parameters=(BodyParameters | None, None),
            **common,
        )
        self.fields: Any = create_model(
            "V2FieldsBody",
            __base__=Strict,
            inputs=(Annotated[list[FieldTensor], several], ...),
            parameters=(FieldsParameters | None, None),
            **common,
        )
        words = Words(ELEMENTS)
        self._texts, self._fields = Checked[Any](self.texts, words), Checked[Any](self.fields, words)

    def read(self, body: Any, tail: bytes = b"") -> V2Call:
        """Parse a body; ``tail`` is the data after its JSON.

        Raises:
            RequestError: the body has neither the tensor ``request`` with one JSON object per element, nor tensors by field; or it
                names another model.
        """
        try:
            inputs = body["inputs"]
            names = (
                [value.get("name") for value in inputs if isinstance(value, dict)] if isinstance(inputs, list) else []
            )
            texts = INPUT in names
            if texts and len(inputs) != 1:
                raise Fault(("inputs",), f"must be {INPUT!r} alone, or one tensor per field", kind="mixed_inputs")
            checked = (self._texts if texts else self._fields).read(body)
            tensors = read(checked.inputs, tail, vectors=self._parser.vectors, widens=self._parser.widens)
            if texts:
                requests = self._of_texts(tensors[0].values)
            else:
                limits = (
                    {} if checked.parameters is None else checked.parameters.model_dump(include=set(v2_fields.LIMITS))
                )
                requests = [v2_fields.parse(tensors, limits, self._parser)]
        except Fault as fault:
            raise fault.error(json_path()) from None
        return V2Call(requests, self._outputs(checked), checked.id, self._model_name, texts)

    def _of_texts(self, texts: Sequence[Any]) -> list[Request]:
        path = ("inputs", 0, "data")
        values = []
        for index, text in enumerate(texts):
            try:
                values.append(json_text.loads(text))
            except Fault as fault:
                raise fault.below(*path, index) from None
        try:
            return self._parser.read(values)
        except Fault as fault:
            raise fault.below(*path) from None

    def _outputs(self, body: Any) -> dict[str, bool]:
        """The requested output tensors (default: all), and whether each is binary."""
        default = bool(body.parameters is not None and body.parameters.binary_data_output)
        binary_by_output = {}
        for output in body.outputs or ():
            binary = None if output.parameters is None else output.parameters.binary_data
            binary_by_output[output.name] = default if binary is None else binary
        return binary_by_output or dict.fromkeys(self._names, default)


def _only(name: str) -> Any:
    """The type of a text that can only be ``name``."""

    def check(value: str) -> str:
        if value != name:
            raise custom(
                "other_model",
                f"is {shown(value)}, and this is {name!r}: send the request to that model, or leave it out",
            )
        return value

    return Annotated[str, AfterValidator(check), WithJsonSchema({"const": name})]
