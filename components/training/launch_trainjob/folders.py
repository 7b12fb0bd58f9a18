"""Folders in a store, as the pods of a TrainJob and the step that waits for them exchange them.

A pod may be started again after it has written a part, or all but the last word. So each attempt writes a folder of its own, and then
``result.json``, which names the attempt and the hashes of its files: written once, by whichever attempt was first.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path

from components.training.steps import StepResult
from thinktwice.errors import PipelineError, StorageError, reason
from thinktwice.files import full_disk_named
from thinktwice.frozen import Frozen
from thinktwice.hashing import FileEntry, check_folder
from thinktwice.storage.location import is_safe_key
from thinktwice.storage.open import open_store
from thinktwice.storage.store import Store, read_all

RESULT_FILE = "result.json"
MAX_RESULT = 1 << 20  # bytes


class Written(Frozen):
    """Content of ``result.json``."""

    attempt: str
    files: dict[str, FileEntry]
    result: StepResult


def fetch_folder(uri: str, target: Path, below: str = "") -> None:
    """Copy all files of a folder in a store.

    Raises:
        StorageError: there are none, a name is not a file name, or the store fails.
    """
    with open_store(uri) as store:
        keys = [entry.key for entry in store.entries(below)]
        if not keys:
            raise StorageError(f"{store.uri}{below} contains nothing: check that the step before has written there")
        for key in keys:
            if not is_safe_key(key):
                raise StorageError(f"{store.uri} contains the key {key!r}, which is not a file name: remove it")
            _copy(store, key, target / key.removeprefix(below))


def write_result(uri: str, folder: Path, result: StepResult) -> bool:
    """Write a model and then the result. Returns False if another attempt was first."""
    attempt = uuid.uuid4().hex
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    with open_store(uri) as store, tempfile.TemporaryDirectory(prefix="thinktwice-result-") as scratch:
        for key, path in paths.items():
            store.put_if_absent(f"{attempt}/{key}", path)
        written = Written(attempt=attempt, files={key: FileEntry.of(p) for key, p in paths.items()}, result=result)
        (Path(scratch) / RESULT_FILE).write_text(written.model_dump_json(), encoding="utf-8")
        return store.put_if_absent(RESULT_FILE, Path(scratch) / RESULT_FILE)


def has_result(uri: str) -> bool:
    """Whether an attempt has finished."""
    with open_store(uri) as store:
        return any(entry.key == RESULT_FILE for entry in store.entries(RESULT_FILE))


def read_result(uri: str, target: Path) -> StepResult:
    """Copy the model of the finished attempt to ``target``, checked by its hashes.

    Raises:
        PipelineError: there is no result, or it is damaged.
    """
    with open_store(uri) as store:
        try:
            written = Written.model_validate_json(read_all(store, RESULT_FILE, MAX_RESULT))
        except ValueError as error:
            raise PipelineError(f"{store.uri}{RESULT_FILE} is damaged ({reason(error)}): run the step again") from error
        except StorageError as error:
            raise PipelineError(f"the TrainJob has written no result: {error}") from error
        for key in written.files:
            if not is_safe_key(key):
                raise PipelineError(
                    f"{store.uri}{RESULT_FILE} names {key!r}, which is not a file name: run the step again"
                )
            _copy(store, f"{written.attempt}/{key}", target / key)
    check_folder(f"result of {uri}", target, written.files, "run the step again")
    return written.result


def _copy(store: Store, key: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.open(key) as file, full_disk_named(path), path.open("wb") as copy:
        shutil.copyfileobj(file, copy)
