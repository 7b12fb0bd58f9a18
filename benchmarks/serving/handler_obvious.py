"""The obvious handler, as a first implementation would be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

NOTHING = b'{"predictions": []}'


class Obvious:
    """The feature store's SDK and an eager forward pass for every request: correct, not optimised."""

    def initialize(self, context: Any) -> None:
        import torch

        from serving.features.feast_source import FeastSource, open_feast
        from thinktwice.release.bundle import load_bundle

        torch.set_num_threads(1)
        bundle = load_bundle(Path(context.system_properties["model_dir"]) / "bundle")
        store, service = open_feast(os.environ["THINKTWICE_FEATURE_STORE"], bundle.manifest.feature_service)
        self._source = FeastSource(store, service, bundle.schema)
        self._bundle = bundle

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        import torch

        out = []
        for element in data:
            (request,) = json.loads(element["body"])["instances"]
            if "rows" in request:  # the readiness request at the end of a start
                out.append(NOTHING)
                continue
            (user,) = self._source.fetch("user", [request["user_id"]])
            items = self._source.fetch("item", request["candidates"])
            rows = [
                {**user.values, **row.values, "user_id": request["user_id"], "item_id": item}
                for item, row in zip(request["candidates"], items, strict=True)
            ]
            with torch.inference_mode():
                logits = self._bundle.model(self._bundle.encoder.encode_rows(rows))
            scores = torch.sigmoid(logits).tolist()
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            rank = {candidate: number + 1 for number, candidate in enumerate(order)}
            version = self._bundle.manifest.model_version
            entries = [
                {"item_id": item, "probability": scores[i], "rank": rank[i], "model_version": version}
                for i, item in enumerate(request["candidates"])
            ]
            out.append(json.dumps({"predictions": [{"items": entries, "model_version": version}]}).encode())
        return out
