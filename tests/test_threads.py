"""How many threads the library computes with, whoever calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinktwice.errors import ResourceError
from thinktwice.threads import VARIABLE, num_threads, reproducible, thread_environment


@given(st.integers(1, 1024))
def test_the_variable_names_the_number(count: int) -> None:
    assert num_threads({VARIABLE: f" {count} "}) == count
    assert set(thread_environment({VARIABLE: str(count), "OMP_NUM_THREADS": "64"}).values()) == {str(count)}


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}, {VARIABLE: "  "}, {"OMP_NUM_THREADS": "16"}])
def test_one_thread_unless_asked_for_more(environment: dict[str, str]) -> None:
    assert num_threads(environment) == 1


@given(st.one_of(st.integers(max_value=0), st.integers(min_value=1025), st.floats(), st.text(min_size=1)).map(str))
def test_anything_else_is_refused_by_name(text: str) -> None:
    if (text.strip().isascii() and text.strip().isdecimal() and 1 <= int(text) <= 1024) or not text.strip():
        return
    with pytest.raises(ResourceError, match=VARIABLE):
        num_threads({VARIABLE: text})


@pytest.fixture
def five_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("asked", [1, 2, 3])
def test_inside_the_number_is_ours_and_outside_it_is_the_callers(
    asked: int, five_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(asked))
    mode = torch.get_deterministic_debug_mode()

    @reproducible()
    def inside() -> tuple[int, int]:
        with reproducible():
            pass
        return torch.get_num_threads(), torch.get_deterministic_debug_mode()

    for _ in range(2):
        assert inside() == (asked, 2 if not torch.cuda.is_available() else mode)
        assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == (5, mode)
    with pytest.raises(ZeroDivisionError), reproducible():
        _ = 1 // 0
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == (5, mode)
    assert torch.utils.deterministic.fill_uninitialized_memory


def public_work() -> dict[str, Callable[..., object]]:
    from thinktwice.evaluate.bless import bless
    from thinktwice.evaluate.bundles import evaluate_bundles
    from thinktwice.evaluate.compare import evaluate
    from thinktwice.evaluate.from_bundle import score_bundle
    from thinktwice.pretrain.pretrain import fit as pretrain
    from thinktwice.selection.fit import fit_test_time
    from thinktwice.train.finetune import fit as finetune
    from thinktwice.train.run import train

    found = (bless, evaluate_bundles, evaluate, score_bundle, pretrain, fit_test_time, finetune, train)
    return {f"{function.__module__}.{function.__name__}": function for function in found}


@pytest.mark.parametrize("name", sorted(public_work()))
def test_everything_that_trains_or_scores_computes_within(
    name: str, five_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong number is refused before the first argument is looked at: nothing runs outside."""
    monkeypatch.setenv(VARIABLE, "many")
    with pytest.raises(ResourceError, match="'many'"):
        public_work()[name]()
    assert torch.get_num_threads() == 5


def test_a_wrong_number_is_one_sentence_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"")
    (tmp_path / "schema.yaml").write_text("name: x\ntime: {column: t}\nfields: [{name: a}]\n")
    command = ["pipeline", "run", "--source", "parquet", "--path", "log.parquet", "--schema", "schema.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "thinktwice", *command],
        cwd=tmp_path,
        env={**os.environ, VARIABLE: "-1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"thinktwice: {VARIABLE}='-1' is not a number of threads from 1 to 1024: correct or unset it"
    ]
