"""The gateway file: listening address, experiments, and addresses of their arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from thinktwice.errors import ServerError
from thinktwice.experiment.file import CONTROL, ExperimentFile, load_experiment
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.routes import cluster_of
from thinktwice.strict_yaml import first_fault, read_mapping

FORMAT = 1


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
    threads: int = Field(default=1, ge=1, le=64)
    log_bytes: int = Field(default=256 << 20, ge=1 << 12)

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
    """

    file: GatewayFile
    experiments: Sequence[ExperimentFile]
    endpoints: Mapping[str, Sequence[Endpoint]]
    secret: str | None


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
    return Declared(file, experiments, endpoints, _secret(path.parent, file.secret_file))


def _secret(folder: Path, name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(
            f"secret file {folder / name} cannot be read ({error}): set secret_file to a readable text file"
        ) from error
