"""TorchServe's side of the :class:`serving.scorer.Scorer`: a batch of HTTP requests in, one JSON body each out.

No envelope: TorchServe's own handle the first request of a batch only. A request that cannot be answered gets its own
status and error body and does not touch the others.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import orjson

from serving import codec_v1, codec_v2
from serving.scorer import Scorer, open_scorer
from thinktwice.errors import FeatureStoreError, RequestError

FEATURE_STORE = "THINKTWICE_FEATURE_STORE"
JSON = "application/json"

logger = logging.getLogger(__name__)


class CTRHandler:
    """What TorchServe loads. One instance per worker process."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None
        self._model_name = ""

    def initialize(self, context: Any) -> None:
        """Load the bundle inside the archive and the feature store of this machine, and score once."""
        import torch

        config = context.model_yaml_config or {}
        # A worker is one of several on its machine, and a row of candidates is too small to share among threads.
        torch.set_num_threads(int(config.get("torchThreads", 1)))
        folder = Path(context.system_properties["model_dir"]) / "bundle"
        store = os.environ.get(FEATURE_STORE) or config.get("featureStore")
        try:
            self._scorer = open_scorer(folder, store)
        except Exception as error:
            # Whoever started the server looks for this line in its log and shows the sentence to the user.
            logger.error("cannot load: %s", " ".join(str(error).split()))
            raise
        self._model_name = context.model_name

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer every request of a TorchServe batch, in order."""
        received = time.monotonic()
        return [self._answer(element, context, index, received) for index, element in enumerate(data)]

    def _answer(self, element: dict[str, Any], context: Any, index: int, received: float) -> bytes:
        context.set_response_content_type(index, JSON)
        try:
            return orjson.dumps(self._predict(element, received))
        except RequestError as error:
            context.set_response_status(error.status, "Bad Request", idx=index)
            return _error(str(error), error.field)
        except FeatureStoreError as error:
            logger.error("feature store: %s", error)
            context.set_response_status(503, "Service Unavailable", idx=index)
            return _error("the feature store does not answer, try again later")
        except Exception:
            logger.exception("prediction failed")
            context.set_response_status(500, "Internal Server Error", idx=index)
            return _error("prediction failed")

    def _predict(self, element: dict[str, Any], received: float) -> dict[str, Any]:
        assert self._scorer is not None, "TorchServe calls initialize first"
        body = _decode(element)
        v2 = codec_v2.is_v2(body)
        values = codec_v2.instances(body) if v2 else codec_v1.instances(body)
        requests = self._scorer.parser.parse_all(values, "inputs[0].data" if v2 else "instances")
        if v2:
            codec_v2.wanted_outputs(body)  # refuse before the work is done
        answers = self._scorer.score(requests, received)
        return codec_v2.encode(answers, body, self._model_name) if v2 else codec_v1.encode(answers)


def _decode(element: dict[str, Any]) -> dict[str, Any]:
    raw = element.get("body", element.get("data"))
    if raw is None:
        raise RequestError("the request has no JSON body: send Content-Type application/json", field="body")
    if isinstance(raw, (bytes, bytearray, str)):
        try:
            raw = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is not valid JSON: {error}", field="body") from None
    if not isinstance(raw, dict):
        raise RequestError("the body must be a JSON object", field="body")
    return raw


def _error(message: str, field: str = "") -> bytes:
    return orjson.dumps({"error": message, "field": field} if field else {"error": message})
