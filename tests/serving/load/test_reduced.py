"""Answers that say of themselves that something was taken from them are not compared when they are asked for again."""

from __future__ import annotations

import json

import pytest

from serving.load.drive import REDUCED


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("defaults", [[], ["user"], ["user", "item"]])
def test_reduced_answers_are_known_in_both_protocols(capped: bool, defaults: list[str]) -> None:
    flags = {"paths_capped": capped, "default_features": defaults}
    text = json.dumps(flags, separators=(",", ":"))
    nested = json.dumps({"flags": text}, separators=(",", ":"))
    for body in (text, nested):
        assert bool(REDUCED.search(body.encode())) is (capped or bool(defaults)), body
