"""The roll-out on KServe as rendered files: an InferenceService for each arm and the files of the gateway's proxy.

Nothing is applied: the folder is for kubectl or a GitOps repository. Arms are separate InferenceServices, scaled and measured
separately; KServe's own canary draws by request and is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from thinktwice.errors import BundleError, ExperimentError, reason
from thinktwice.experiment.bootstrap import bootstrap
from thinktwice.experiment.changes import check_together
from thinktwice.experiment.file import CONTROL, ExperimentFile
from thinktwice.experiment.gateway_config import Endpoint, GatewayConfig
from thinktwice.experiment.route_check import check_routes, read_split
from thinktwice.experiment.routes import CLUSTERS, ROUTES, cluster_of, render
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.frozen import Frozen
from thinktwice.release.rollout import RolloutStatus, ServedArm
from thinktwice.strict_yaml import parse_yaml

STATE_FILE, CONFIG_MAP, KUSTOMIZATION = "rollout.json", "gateway-config.yaml", "kustomization.yaml"
MOUNT = "/etc/thinktwice-gateway"  # where the gateway mounts the ConfigMap
ARM_SETTINGS = "/etc/thinktwice-arm"  # where a predictor mounts the settings of its arm
SERVICE_PORT = 80


class KServeSettings(Frozen):
    """Names in the cluster.

    Attributes:
        namespace: of the InferenceServices and the gateway.
        storage: URI of a version's folder, with ``{model_version}``; as ``thinktwice pipeline upload`` writes it.
        service: start of the InferenceServices' names.
        runtime: ServingRuntime of the predictors.
        replicas: smallest number of each arm, the same for all.
        prediction_log: folder of the prediction log in the predictors' containers.
    """

    namespace: str = "thinktwice"
    storage: str
    service: str = Field(default="ctr", pattern=r"^[a-z][a-z0-9-]{0,20}$")
    runtime: str = "ctr-torchserve"
    replicas: int = Field(default=2, ge=1)
    prediction_log: str = "/var/log/thinktwice/served"
    gateway: GatewayConfig = GatewayConfig(folder=MOUNT, watch_folder=True, listen=Endpoint(host="0.0.0.0", port=8080))  # noqa: S104


class _Written(Frozen):
    """Content of ``rollout.json``."""

    format: int = 1
    settings: KServeSettings
    serial: int = 0
    arms: tuple[ServedArm, ...] = ()
    experiments: tuple[ExperimentFile, ...] = ()


class KServeRollout:
    """The target in a cluster.

    Args:
        folder: to write; it also remembers what was rendered.
        versions: model version by bundle hash, or by what an experiment file calls a bundle.
    """

    def __init__(self, folder: Path, settings: KServeSettings, versions: Mapping[str, ServedArm]) -> None:
        self._folder, self._settings, self._versions = folder, settings, versions

    @classmethod
    def opened(cls, folder: Path) -> KServeRollout:
        """The target that wrote a folder.

        Raises:
            BundleError: nothing was rendered there yet, or it is damaged.
        """
        if not (folder / STATE_FILE).exists():
            raise BundleError(
                f"{folder} contains no {STATE_FILE}: render it with `thinktwice experiment start --kserve`"
            )
        return cls(folder, _read(folder, None).settings, {})

    def start(self, file: ExperimentFile) -> None:
        """Render an InferenceService for every arm, and routes with the coverage.

        Raises:
            ExperimentError: the experiment conflicts with another, or its control is not the one that is served.
            BundleError: the version of an arm is not known.
        """
        current = self._read()
        others = [e for e in current.experiments if e.name != file.name]
        check_together([*others, file])
        arms = {arm.name: arm for arm in current.arms}
        control = self._version(file.control.bundle)
        if (served := arms.get(CONTROL)) is not None and served.bundle_hash != control.bundle_hash:
            raise ExperimentError(
                f"the control of {file.name} is bundle {control.bundle_hash[:12]} and {served.bundle_hash[:12]} is served: "
                "everybody outside the experiment gets control, so it must be the same; name the served bundle as control"
            )
        for arm in file.arms:
            name = CONTROL if arm.name == CONTROL else f"{file.name}/{arm.name}"
            arms[name] = self._version(arm.bundle).model_copy(update={"name": name})
        self._write(current, arms, [*others, file])

    def weight(self, file: ExperimentFile) -> None:
        """Render routes with the new coverage."""
        current = self._read()
        experiments = [file if e.name == file.name else e for e in current.experiments]
        self._write(current, {arm.name: arm for arm in current.arms}, experiments)

    def promote(self, file: ExperimentFile, arm: str) -> None:
        """Render control with the arm's version, and no experiment."""
        promoted = {a.name: a for a in _read(self._folder, self._settings).arms}.get(f"{file.name}/{arm}")
        if promoted is not None:  # else it is done already
            self._end(file, promoted.model_copy(update={"name": CONTROL}))

    def roll_back(self, file: ExperimentFile) -> None:
        """Render routes that give everybody control, and no service of a treatment."""
        self._end(file, None)

    def status(self) -> RolloutStatus:
        current = self._read()
        return RolloutStatus(arms=current.arms, coverage={e.name: e.coverage for e in current.experiments})

    def _end(self, file: ExperimentFile, control: ServedArm | None) -> None:
        current = self._read()
        arms = {arm.name: arm for arm in current.arms if not arm.name.startswith(f"{file.name}/")}
        if control is not None:
            arms[CONTROL] = control
        self._write(current, arms, [e for e in current.experiments if e.name != file.name])

    def _version(self, bundle: str) -> ServedArm:
        if bundle not in self._versions:
            known = ", ".join(sorted(self._versions)) or "none"
            raise BundleError(f"no version {bundle!r} is known (there are {known}): upload it first")
        return self._versions[bundle]

    def _read(self) -> _Written:
        return _read(self._folder, self._settings)

    def _write(self, before: _Written, arms: Mapping[str, ServedArm], experiments: list[ExperimentFile]) -> None:
        settings, serial = self._settings, before.serial + 1
        endpoints = {
            name if name == CONTROL else cluster_of(*name.split("/")): [
                Endpoint(
                    host=f"{self._service(name)}-predictor.{settings.namespace}.svc.cluster.local", port=SERVICE_PORT
                )
            ]
            for name in arms
        }
        live = self._live()
        rendered = render(experiments, endpoints, settings.gateway, serial)
        files = dict(rendered.files())
        check_routes(files[ROUTES], files[CLUSTERS], experiments, None if live is None else read_split(*live))
        data = {name: content.decode() for name, content in files.items()}
        data["bootstrap.json"] = json.dumps(bootstrap(settings.gateway), indent=1)
        with atomic_dir(self._folder) as folder:
            names = [CONFIG_MAP]
            _dump(folder / CONFIG_MAP, self._config_map(data))
            for name, arm in arms.items():
                names.append(f"settings-{name.replace('/', '-')}.yaml")
                _dump(folder / names[-1], self._settings_map(name))
                names.append(f"inferenceservice-{name.replace('/', '-')}.yaml")
                _dump(folder / names[-1], self._inference_service(name, arm))
            _dump(folder / KUSTOMIZATION, {"namespace": settings.namespace, "resources": names})
            written = _Written(
                settings=settings, serial=serial, arms=tuple(arms.values()), experiments=tuple(experiments)
            )
            write_json(folder / STATE_FILE, written.model_dump(mode="json", exclude_none=True))

    def _live(self) -> tuple[bytes, bytes] | None:
        path = self._folder / CONFIG_MAP
        if not path.exists():
            return None
        try:
            data = parse_yaml(path.read_text(encoding="utf-8"))["data"]
            return data[ROUTES].encode(), data[CLUSTERS].encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExperimentError(
                f"{path} is not a ConfigMap that this roll-out wrote ({reason(error)}): restore it, or start anew in another folder"
            ) from error

    def _service(self, arm: str) -> str:
        return f"{self._settings.service}-{arm.replace('/', '-')}"

    def _config_map(self, data: dict[str, str]) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{self._settings.service}-gateway"},
            "data": data,
        }

    def _settings_map(self, name: str) -> dict[str, Any]:
        """Settings of an arm's predictors: they name themselves, and log every enrolled request."""
        content = {
            "arm": name.rpartition("/")[2],
            "metrics_host": "0.0.0.0",  # noqa: S104 (in a pod; a network policy decides who reads them)
            "metrics_port": 8082,
            "prediction_log": {"folder": self._settings.prediction_log},
        }
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{self._service(name)}-serving"},
            "data": {"serving.yaml": yaml.safe_dump(content, sort_keys=False)},
        }

    def _inference_service(self, name: str, arm: ServedArm) -> dict[str, Any]:
        labels = {"app.kubernetes.io/name": "ctr-predictor", "app.kubernetes.io/instance": self._service(name)}
        return {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": self._service(name),
                "labels": labels,
                "annotations": {"ctr.example.org/bundle-hash": arm.bundle_hash},
            },
            "spec": {
                "predictor": {
                    "serviceAccountName": "ctr-predictor",
                    "automountServiceAccountToken": False,
                    "minReplicas": self._settings.replicas,
                    "labels": {**labels, "ctr.example.org/arm": name.replace("/", ".")},
                    "volumes": [{"name": "arm-settings", "configMap": {"name": f"{self._service(name)}-serving"}}],
                    "model": {
                        "runtime": self._settings.runtime,
                        "modelFormat": {"name": "ctr-pytorch", "version": "1"},
                        "protocolVersion": "v1",
                        "storageUri": arm.where,
                        "env": [{"name": "THINKTWICE_SERVING", "value": f"{ARM_SETTINGS}/serving.yaml"}],
                        "volumeMounts": [{"name": "arm-settings", "mountPath": ARM_SETTINGS, "readOnly": True}],
                    },
                }
            },
        }


def _read(folder: Path, settings: KServeSettings | None) -> _Written:
    path = folder / STATE_FILE
    if settings is not None and not path.exists():
        return _Written(settings=settings)
    try:
        return _Written.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({reason(error)}): restore it from version control") from error


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
