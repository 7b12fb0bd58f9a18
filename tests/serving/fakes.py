"""Stand-ins: a feature store in a dictionary, and the context TorchServe hands to a handler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serving.admission import Admission
from serving.config import ServingConfig
from serving.features.lookup import Features
from serving.scorer import Scorer
from serving.service import Service
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import Tracing
from tests.serving.small import SCHEMA
from thinktwice.errors import FeatureStoreError
from thinktwice.release.bundle import load_bundle

USERS = [f"u{i}" for i in range(30)]
ITEMS = [f"i{i}" for i in range(60)]


class FakeReader:
    """Knows USERS and ITEMS; ``broken`` makes it fail as a dead store does."""

    def __init__(self) -> None:
        self.broken = False
        self.reads: list[tuple[str | None, list[str]]] = []

    def read(self, user_id: str | None, item_ids: Sequence[str], timeout: float | None = None) -> Features:
        if self.broken:
            raise FeatureStoreError(
                "the online store does not answer for user features (connection refused at 10.0.0.7)"
            )
        self.reads.append((user_id, list(item_ids)))
        user: dict[str, Any] = dict.fromkeys(("gender", "history", *SCHEMA.statistic_names("user")))
        if user_id in USERS:
            user |= {"gender": "f", "history": ["i1", "i2"], "user_views_all": 1.0, "user_rate_all": 0.4}
        cold = tuple(i not in ITEMS for i in item_ids)
        fresh = (False,) * len(item_ids)
        return Features(user, [self._item(i) for i in item_ids], user_id not in USERS, cold, False, fresh)

    def close(self) -> None:
        """Nothing is open."""

    @staticmethod
    def _item(item: str) -> dict[str, Any]:
        if item not in ITEMS:
            return dict.fromkeys(("genre", "price", "cover", *SCHEMA.statistic_names("item")))
        number = int(item[1:])
        values = {"genre": f"g{number % 5}", "price": float(number % 7), "cover": [0.0, 0.5, 1.0]}
        return {**values, "item_views_all": 2.0, "item_rate_all": 0.3}


def make_service(
    bundle: Path,
    config: ServingConfig | None = None,
    registry: CollectorRegistry | None = None,
    tracing: Tracing | None = None,
    **more: Any,
) -> Service:
    """The real service over a bundle, with the store in a dictionary."""
    # A test that calls without a pause is no load.
    config, tracing = config or ServingConfig(shed=False), tracing or Tracing()
    scorer = Scorer(load_bundle(bundle), FakeReader(), tracing)
    admission = Admission(workers=config.workers, queue=config.queue, shed=config.shed)
    metrics = Metrics(config.arm, scorer.bundle.manifest.model_version, registry or CollectorRegistry())
    return Service(scorer, config, metrics, admission, tracing, model_name="ctr", **more)


class FakeContext:
    """What a handler sees of a TorchServe batch of ``size`` requests."""

    def __init__(self, size: int, model_dir: Path | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.model_name = "ctr"
        self.model_yaml_config: dict[str, Any] = {"torchThreads": 1}
        self.system_properties = {"model_dir": str(model_dir)}
        self.status = [200] * size
        self.request_headers = dict(headers or {})
        self.headers: list[dict[str, str]] = [{} for _ in range(size)]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        assert phrase
        self.status[idx] = code

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return self.request_headers

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        assert isinstance(value, str)
        self.headers[idx][key] = value
