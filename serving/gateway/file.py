"""The gateway file: listening address, experiments, and addresses of their arms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from thinktwice.errors import ServerError
from thinktwice.experiment.file import CONTROL, ExperimentFile, load_experiment
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig, Tls
from thinktwice.experiment.routes import cluster_of
from thinktwice.frozen import WrittenCount
from thinktwice.strict_yaml import first_fault, read_mapping

FORMAT = 1
MOST_TOKENS = 20


def _endpoint(value: Any) -> Any:
    """``HOST:PORT`` as an endpoint; an IPv6 address is in brackets."""
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError(f"{value!r} is not HOST:PORT")
    return {"host": host.removeprefix("[").removesuffix("]"), "port": int(port)}


Address = Annotated[Endpoint, BeforeValidator(_endpoint)]


class GatewayFile(GatewayConfig):
    """One gateway, as its operator declares it.

    Attributes:
        version: of this format.
        experiments: experiment files, relative to this file; without any, all users get control.
        arms: replicas by arm: ``control``, and all others as ``experiment/arm``.
        secret_file: file with the secret by which a request can force its arm (``x-force-arm: CLUSTER:SECRET``); None disables this.
        threads: of Envoy.
        log_bytes: size at which the access log is rotated.
    """

    version: Literal[1]
    listen: Address = Endpoint(host="127.0.0.1", port=8080)
    experiments: tuple[str, ...] = ()
    arms: dict[str, tuple[Address, ...]] = Field(min_length=1)
    secret_file: str | None = None
    threads: WrittenCount = Field(default=1, ge=1, le=64)
    log_bytes: WrittenCount = Field(default=256 << 20, ge=1 << 12)

    @field_validator("arms")
    @classmethod
    def _has_control(cls, arms: dict[str, tuple[Endpoint, ...]]) -> dict[str, tuple[Endpoint, ...]]:
        for name, replicas in arms.items():
            if name != CONTROL and name.count("/") != 1:
                raise ValueError(f"arm {name!r} must be {CONTROL} or experiment/arm")
            if not replicas:
                raise ValueError(f"arm {name!r} has no replica: set its HOST:PORT")
        if CONTROL not in arms:
            raise ValueError(f"there is no arm {CONTROL!r}: set its HOST:PORT")
        return arms


@dataclass(frozen=True)
class Declared:
    """A gateway file and the files it refers to.

    Attributes:
        endpoints: replicas by cluster.
        secret: content of the secret file.
        tokens: lines of the token file.
    """

    file: GatewayFile
    experiments: Sequence[ExperimentFile]
    endpoints: Mapping[str, Sequence[Endpoint]]
    secret: str | None
    tokens: tuple[str, ...] = ()


def load_gateway(path: Path | str) -> Declared:
    """Read a gateway file, its experiments and its secret.

    Raises:
        ServerError: the file is missing, has another version, or contains a setting that is unknown or out of range.
        ExperimentError: an experiment file is invalid.
    """
    path = Path(path)
    value = read_mapping(path, "gateway file", ServerError)
    if value.get("version") != FORMAT or isinstance(value.get("version"), bool):
        raise ServerError(
            f"gateway file {path} is of version {value.get('version')!r}; this thinktwice reads version {FORMAT}: write 'version: {FORMAT}'"
        )
    try:
        file = GatewayFile.model_validate(value)
    except ValidationError as error:
        location, message = first_fault(error, GatewayFile, "the file")
        raise ServerError(f"gateway file {path} is wrong at {location} ({message}): correct it") from error
    experiments = [load_experiment(path.parent / name) for name in file.experiments]
    endpoints = {
        name if name == CONTROL else cluster_of(*name.split("/")): replicas for name, replicas in file.arms.items()
    }
    if file.tls is not None:  # relative to this file, as everything else in it
        folder = path.parent.resolve()
        tls = {name: str(folder / value) for name, value in file.tls.model_dump(exclude_none=True).items()}
        file = file.model_copy(update={"tls": Tls.model_validate(tls)})
    secret = _text(path.parent, file.secret_file, "secret_file")
    return Declared(file, experiments, endpoints, secret, _tokens(path.parent, file.token_file))


def check_certificates(file: GatewayFile) -> None:
    """Check that the files of TLS can be read here.

    Raises:
        ServerError: one cannot.
    """
    for name, value in (file.tls.model_dump(exclude_none=True) if file.tls else {}).items():
        try:
            Path(value).open("rb").close()
        except OSError as error:
            raise ServerError(
                f"tls.{name} {value} cannot be read ({error.strerror or error}): set it to a readable PEM file"
            ) from error


def _tokens(folder: Path, name: str | None) -> tuple[str, ...]:
    text = _text(folder, name, "token_file")
    if text is None:
        return ()
    tokens = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not tokens:
        raise ServerError(f"token file {folder / str(name)} is empty: write one token a line, or leave token_file out")
    if len(tokens) > MOST_TOKENS:
        raise ServerError(
            f"token file {folder / str(name)} has {len(tokens)} tokens, at most {MOST_TOKENS} are accepted: remove some"
        )
    for number, token in enumerate(tokens, start=1):
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]{16,200}", token):
            raise ServerError(
                f"token {number} of {folder / str(name)} must be 16 to 200 of A-Z a-z 0-9 . _ ~ + / = -: generate it, for example "
                "with `openssl rand -hex 32`"
            )
    return tokens


def _text(folder: Path, name: str | None, setting: str) -> str | None:
    if name is None:
        return None
    try:
        return (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        what = setting.replace("_", " ")
        raise ServerError(
            f"{what} {folder / name} cannot be read ({error}): set {setting} to a readable text file"
        ) from error
