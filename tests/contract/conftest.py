"""The same champion behind both servers, as real processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.config import ServingConfig
from serving.features.open_reader import FeatureConfig
from serving.local import kserve_process, torchserve_process
from tests.server.conftest import champion, free_port, state
from thinktwice.files import write_json
from thinktwice.release.champion import Champion

__all__ = ["Servers", "champion", "servers", "state"]

LARGEST = 200_000  # bytes of a body


@dataclass(frozen=True)
class Servers:
    """Addresses by name of the server; pids to send signals to."""

    url: dict[str, str]
    metrics: dict[str, str]
    log: dict[str, Path]


@pytest.fixture(scope="session")
def servers(champion: Champion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("contract")
    # A busy machine must not turn a slow lookup into defaults, which would make the answers differ.
    config = ServingConfig(arm="control", max_body_bytes=LARGEST, features=FeatureConfig(timeout_ms=500))
    write_json(folder / "serving.yaml", config.model_dump())
    store = champion.feature_store_dir
    logs = {name: folder / f"{name}.log" for name in ("torchserve", "kserve")}
    with (
        torchserve_process.running(
            champion.archive, feature_store=store, port=free_port(), log=logs["torchserve"], config=config
        ) as first,
        kserve_process.running(
            champion.bundle_dir,
            feature_store=store,
            port=free_port(),
            log=logs["kserve"],
            environment={"THINKTWICE_SERVING": str(folder / "serving.yaml")},
        ) as second,
    ):
        yield Servers(
            url={"torchserve": first.url, "kserve": second.url},
            metrics={"torchserve": first.metrics_url, "kserve": second.metrics_url},
            log=logs,
        )
