"""The roll-out on one machine: files that say what the local gateway and its servers serve.

``FOLDER/arms.json`` lists arms and their versions; ``FOLDER/experiments/NAME.yaml`` has the present coverage. The process
that runs the servers (``thinktwice experiment serve``) follows the first; the gateway reads the second at each reload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from thinktwice.errors import BundleError, ExperimentError, reason
from thinktwice.experiment.changes import check_together
from thinktwice.experiment.file import CONTROL, ExperimentFile, load_experiment
from thinktwice.files import atomic_file, json_bytes, read_json, write_json
from thinktwice.frozen import Frozen
from thinktwice.release.challenger import Version, promote, version_named
from thinktwice.release.champion import require_champion
from thinktwice.release.rollout import RolloutStatus, ServedArm

ARMS, EXPERIMENTS = "arms.json", "experiments"


class LocalArms(Frozen):
    """Content of ``arms.json``. The first arm is control; experiments are those in the gateway, by name."""

    format: int = 1
    experiments: tuple[str, ...] = ()
    arms: tuple[ServedArm, ...] = ()


class LocalRollout:
    """The target on this machine.

    Args:
        state_dir: folder of the champion and the challengers.
        folder: of the files above.
        reload: gives a running gateway its files again and returns when they are live; does nothing if none runs.
    """

    def __init__(self, state_dir: Path, folder: Path, reload: Callable[[], None] = lambda: None) -> None:
        self._state, self._folder, self._reload = state_dir, folder, reload

    def serve_champion(self) -> None:
        """Serve the champion as control, if no experiment runs.

        Raises:
            BundleError: there is no champion.
        """
        if read_arms(self._folder).experiments:
            return
        champion = require_champion(self._state, "--state or --work")
        version = version_named(self._state, champion.info.bundle_hash)
        write_arms(self._folder, LocalArms(arms=(served_arm(CONTROL, version),)))

    def start(self, file: ExperimentFile) -> None:
        """Serve the arms.

        Raises:
            ExperimentError: it conflicts with an experiment that runs, or its control is not the champion.
            BundleError: an arm's bundle is no version of the state folder.
        """
        current = read_arms(self._folder)
        others = [load_experiment(self.experiment_file(name)) for name in current.experiments if name != file.name]
        check_together([*others, file])
        control, *treatments = self._versions(file)
        arms = {arm.name: arm for arm in current.arms}
        arms[CONTROL] = served_arm(CONTROL, control)
        for arm, version in zip(file.treatments, treatments, strict=True):
            name = f"{file.name}/{arm.name}"
            arms[name] = served_arm(name, version)
        self._write(file)
        names = tuple(dict.fromkeys((*current.experiments, file.name)))
        write_arms(self._folder, LocalArms(experiments=names, arms=tuple(arms.values())))
        self._reload()

    def weight(self, file: ExperimentFile) -> None:
        """Change the coverage within one reload of the gateway."""
        self._write(file)
        self._reload()

    def promote(self, file: ExperimentFile, arm: str) -> None:
        """Make the arm the champion. The old control answers until the server of the new champion is ready."""
        bundle = next(a.bundle for a in file.arms if a.name == arm)
        control = version_named(self._state, file.control.bundle)
        version = version_named(self._state, bundle)
        shared = control.feature_service == version.feature_service  # the store of the champion has the latest values
        champion = promote(self._state, version, store=control.feature_store_dir if shared else None)
        self._write(file.model_copy(update={"coverage": 0.0}))
        served = ServedArm(
            name=CONTROL,
            model_version=champion.info.model_version,
            bundle_hash=champion.info.bundle_hash,
            where=str(champion.folder),
        )
        self._without(file, served)
        self._reload()

    def roll_back(self, file: ExperimentFile) -> None:
        """Everybody gets control within one reload; the servers of the treatments end afterwards."""
        self._write(file.model_copy(update={"coverage": 0.0}))
        self._reload()
        self._without(file)

    def status(self) -> RolloutStatus:
        current = read_arms(self._folder)
        coverage = {name: load_experiment(self.experiment_file(name)).coverage for name in current.experiments}
        return RolloutStatus(arms=current.arms, coverage=coverage)

    def experiment_file(self, name: str) -> Path:
        """File of an experiment with its present coverage."""
        return self._folder / EXPERIMENTS / f"{name}.yaml"

    def _write(self, file: ExperimentFile) -> None:
        path = self.experiment_file(file.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:  # JSON is YAML
            temporary.write_bytes(json_bytes(file.model_dump(mode="json", exclude_none=True)))

    def _without(self, file: ExperimentFile, control: ServedArm | None = None) -> None:
        current = read_arms(self._folder)
        arms = [a for a in current.arms if not a.name.startswith(f"{file.name}/")]
        if control is not None:
            arms = [control if a.name == CONTROL else a for a in arms]
        names = tuple(name for name in current.experiments if name != file.name)
        write_arms(self._folder, LocalArms(experiments=names, arms=tuple(arms)))

    def _versions(self, file: ExperimentFile) -> Sequence[Version]:
        versions = []
        for arm in file.arms:
            if arm.mode is not None:
                raise ExperimentError(
                    f"arm {arm.name} names the mode {arm.mode!r}: package it with `thinktwice bundle challenger --mode {arm.mode}` "
                    "and name that bundle"
                )
            versions.append(version_named(self._state, arm.bundle))
        champion = require_champion(self._state, "--state or --work")
        if versions[0].bundle_hash != champion.info.bundle_hash:
            raise ExperimentError(
                f"the control of {file.name} is bundle {versions[0].bundle_hash[:12]} and the champion is "
                f"{champion.info.bundle_hash[:12]}: everybody outside the experiment gets control, so it must be the champion; name that as control"
            )
        return versions


def read_arms(folder: Path) -> LocalArms:
    """What the local gateway should serve; nothing if no experiment was started.

    Raises:
        BundleError: the file is damaged.
    """
    path = folder / ARMS
    if not path.exists():
        return LocalArms()
    try:
        return LocalArms.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        raise BundleError(
            f"{path} cannot be read ({reason(error)}): remove it and start the experiment again"
        ) from error


def write_arms(folder: Path, arms: LocalArms) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ARMS, arms.model_dump(mode="json"))


def served_arm(name: str, version: Version) -> ServedArm:
    """A version on this machine as an arm of this name."""
    return ServedArm(
        name=name, model_version=version.model_version, bundle_hash=version.bundle_hash, where=str(version.folder)
    )
