"""Warm start: a training set that continues an earlier model keeps the rows of its vocabularies and the bounds of its buckets.

The folder ``start`` of the training set contains the earlier model as its bundle had it; training loads the weights from there.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from thinktwice.data.encoder import Encoder
from thinktwice.schema import LogSchema

START_FOLDER = "start"


@dataclass(frozen=True)
class Start:
    """An earlier model: a folder and, relative to it, the files to keep, the encoder among them."""

    folder: Path
    files: tuple[str, ...]

    def encoder(self) -> Encoder:
        """The encoder of the earlier model."""
        return Encoder.load(self.folder)

    def copy(self, target: Path) -> None:
        """Copy the files into a new folder."""
        target.mkdir()
        for name in self.files:
            shutil.copyfile(self.folder / name, target / name)


def different_fields(schema: LogSchema, encoder: Encoder) -> str:
    """The first difference between the fields of a schema and of an encoder (order, kind, entity, key); empty if they are
    equal."""
    ours, theirs = schema.model_fields_in_order(), encoder.fields
    for schema_field, encoder_field in zip(ours, theirs, strict=False):
        if schema_field != encoder_field:
            names = [
                name
                for name in type(schema_field).model_fields
                if getattr(schema_field, name) != getattr(encoder_field, name)
            ]
            return f"field {schema_field.name!r} has another {names[0]}"
    if len(ours) != len(theirs):
        return f"{len(ours)} fields and {len(theirs)}"
    if schema.key_of("user") != encoder.user_key:
        return f"the users' key is {schema.key_of('user')!r} and {encoder.user_key!r}"
    return ""
