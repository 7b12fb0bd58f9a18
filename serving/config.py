"""Serving settings: limits, deadlines, logging. One YAML file, named by ``THINKTWICE_SERVING``."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError

from serving.features.open_reader import FeatureConfig
from serving.telemetry.prediction_log import PredictionLogConfig
from thinktwice.errors import ServerError
from thinktwice.frozen import Frozen
from thinktwice.release.release import ReleasePolicy
from thinktwice.strict_yaml import first_fault, read_mapping

VARIABLE = "THINKTWICE_SERVING"
ARM = "THINKTWICE_ARM"  # arm of the process, in place of the one in the file: arms on a cluster share their settings
FEATURE_STORE = "THINKTWICE_FEATURE_STORE"  # folder of the feature store


class ServingConfig(Frozen):
    """Settings of one predictor process. All defaults are for production."""

    arm: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")  # arm of an experiment, a label of metrics and logs
    threads: int = Field(default=1, ge=1, le=64)  # of torch and the backend, per worker
    workers: int = Field(
        default=1, ge=1, le=16
    )  # requests scored at the same time by one process (kserve adapter only)
    queue: int = Field(
        default=32, ge=0, le=10_000
    )  # requests that may wait (in the image, TorchServe's is job_queue_size)
    deadline_ms: float = Field(default=1000.0, gt=0, le=600_000)  # for requests without one
    shed: bool = True  # a request that was queued behind another gets base passes only
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    metrics_port: int = Field(
        default=8083, ge=0, le=65535
    )  # 0: disabled (TorchServe adapter only; kserve has /metrics)
    metrics_host: str = "127.0.0.1"
    release: ReleasePolicy = (
        ReleasePolicy()
    )  # which releases are accepted, in addition to those signed by a trusted key
    features: FeatureConfig = FeatureConfig()
    prediction_log: PredictionLogConfig = PredictionLogConfig()
    access_log: bool = True  # one JSON line per request


def load_config(path: str | Path | None = None) -> ServingConfig:
    """Read the file ``path``, by default the one named in the environment. Without a file, return the defaults.

    Raises:
        ServerError: the file is missing, is not a YAML mapping, or contains a setting that is unknown or out of range.
    """
    named = path or os.environ.get(VARIABLE)
    value = read_mapping(named, "serving settings file", ServerError) if named else {}
    if arm := os.environ.get(ARM):
        value, named = {**value, "arm": arm}, named or ARM
    try:
        return ServingConfig.model_validate(value)
    except ValidationError as error:
        location, message = first_fault(error, ServingConfig, "the file")
        raise ServerError(f"serving settings {named} are wrong at {location} ({message}): correct it") from error
