"""Error types of the project, in one tree.

ThinktwiceError
├── DataError            the input data: missing, empty, truncated, or not what the schema says
│   ├── SchemaError      a schema file that is invalid, or does not fit its log
│   └── RowsLostError    a step that must conserve rows did not
├── BundleError          a model bundle that is damaged, incomplete or not the expected one
├── TrainingError        a training run whose loss is no longer a finite number
├── FeatureStoreError    the feature store lacks something, or returns what was not written
├── PipelineError        a pipeline run that cannot start, or that failed in a step
├── ExperimentError      an experiment file, a route file or the records of an experiment that cannot be used
├── RolloutError         a model version that cannot be rolled out; the version before keeps serving
├── ServerError          the model server: no Java, a busy port, a worker that does not start
├── RequestError         a scoring request that cannot be answered (HTTP 4xx)
├── StorageError         a location that names no store, or an object store that cannot be used
├── OverloadedError      a scoring request that cannot be answered now (HTTP 429 or 503)
└── ResourceError        disk, memory or network of this machine

A message names the thing, the value and the fix. The command line prints only the message and exits with 1.
"""

from __future__ import annotations

from collections.abc import Sequence

Location = tuple[str | int, ...]  # keys and indices that locate a value in a document

LONGEST_REASON = 500  # characters; the input quoted by an error may be a whole file


class ThinktwiceError(Exception):
    """Base of all errors that a user can fix."""


def reason(error: BaseException) -> str:
    """The reason in one line that fits into a message: the library's own text without links, line breaks and traces."""
    text = _text(error)
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def _text(error: BaseException) -> str:
    from pydantic import ValidationError  # not imported by the command line at start

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        message = " ".join(first["msg"].removeprefix("Value error, ").split())
        if first["type"] == "literal_error" and isinstance(first["input"], str | int):
            message += f", not {first['input']!r}"  # other inputs may be secrets, or large
        return f"{location}: {message}" if location else message
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class DataError(ThinktwiceError):
    """The input data cannot be used."""


class SchemaError(DataError):
    """The schema file is wrong, or does not fit the log it is given for."""


class RowsLostError(DataError):
    """Rows were lost (or duplicated) where every row must be conserved."""


class BundleError(ThinktwiceError):
    """A model bundle is damaged, incomplete or not the expected one."""


class TrainingError(ThinktwiceError):
    """A training run cannot go on: its loss is no longer a finite number."""


class FeatureStoreError(ThinktwiceError):
    """The feature store cannot return what was requested."""


class PipelineError(ThinktwiceError):
    """A pipeline run cannot start or failed in a step."""


class ExperimentError(ThinktwiceError):
    """An experiment file, a route file or the records of an experiment cannot be used."""


class RolloutError(ThinktwiceError):
    """A model version cannot be rolled out; the version before keeps serving."""


class ServerError(ThinktwiceError):
    """The model server cannot start or does not answer."""


class RequestError(ThinktwiceError):
    """A scoring request is invalid.

    Args:
        message: what is wrong, naming the field.
        field: path of the offending field in the request body, e.g. ``instances[0].candidates``.
        status: HTTP status to answer with.
        loc: keys and indices of the field, from the requests that were checked.
        value: the value of the field; for callers in Python, never shown or logged whole.
        reason: the message without the field.
        kind: the rule that is broken.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        status: int = 400,
        loc: Location = (),
        value: object = None,
        reason: str = "",
        kind: str = "",
    ) -> None:
        super().__init__(message)
        self.field = field
        self.status = status
        self.loc, self.value, self.reason, self.kind = loc, value, reason or message, kind


class OverloadedError(ThinktwiceError):
    """A scoring request cannot be answered in time; it was not processed.

    Args:
        message: why.
        retry_after: seconds after which trying again makes sense.
        status: HTTP status to answer with, 429 (queue full) or 503 (too late).
    """

    def __init__(self, message: str, *, retry_after: float, status: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class StorageError(ThinktwiceError):
    """A location is not valid, or the store there cannot be used."""


class ResourceError(ThinktwiceError):
    """This machine lacks something: disk space, memory, network."""


def guessed(nearest: Sequence[str], then: str) -> str:
    """The end of a message about an unknown name, for use after a colon or semicolon: the ``nearest`` known name as a question, if
    there is one, and ``then``, which begins in lower case."""
    return f"did you mean {nearest[0]}? {then[0].upper()}{then[1:]}" if nearest else then
