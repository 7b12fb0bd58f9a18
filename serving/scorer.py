"""The predictor itself, free of any server: checked requests in, answers out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.features import OnlineFeatureReader
from serving.requests import Request, RequestParser
from thinktwice.bundle import Bundle, load_bundle
from thinktwice.errors import FeatureStoreError, RequestError, ServerError
from thinktwice.testtime.budget import extra_rows

WARM_UP_ROWS = 64
WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Answer:
    """Scores of one request, by place of the candidate (or row) in the request.

    Attributes:
        item_ids: the candidates; None for raw rows.
        order: the places to answer with: all in request order or, when the request has ``k``, the best ``k`` by rank.
        rank: 1 is the most likely click; equal probabilities keep the order of the request.
        paths_capped: more work was wanted than one request may cost (or its deadline allows): the least unsure of the
            unsure rows kept the score of one pass.
        defaulted: context fields the caller left out.
    """

    item_ids: tuple[str, ...] | None
    order: tuple[int, ...]
    probability: tuple[float, ...]
    uncertainty: tuple[float, ...]
    num_paths: tuple[int, ...]
    rank: tuple[int, ...]
    cold_user: bool
    cold_items: tuple[bool, ...]
    paths_capped: bool
    defaulted: tuple[str, ...]
    model_version: str
    bundle_hash: str


class Scorer:
    """Scores requests with one bundle.

    While the cap on path rows does not bind (``paths_capped`` is False), a row has the same scores to the last bit
    (tolerance 0) alone, among 500, in any order and after a restart, on the same machine with the same libraries. When it
    binds, :mod:`thinktwice.testtime.engine` says which rows are admitted; each of the others has exactly its base score.

    Args:
        bundle: a loaded bundle.
        reader: looks features up; None accepts raw rows only.
    """

    def __init__(self, bundle: Bundle, reader: OnlineFeatureReader | None) -> None:
        self.bundle = bundle
        self.reader = reader
        self.parser = RequestParser(bundle.schema, online=reader is not None)
        self._user_key, self._item_key = bundle.schema.key_of("user"), bundle.schema.key_of("item")
        self._ms_per_path_row = 0.0

    def warm_up(self) -> None:
        """Look up and score once with made-up values, so that the first caller does not pay for it.

        Also measures what one path of one row costs, for requests with a deadline.
        """
        if self.reader is not None:
            self.reader.read("" if self._user_key is None else "0", ["0"])
        batch = self.bundle.encoder.encode_rows([{}] * WARM_UP_ROWS)
        best = float("inf")
        for _ in range(WARM_UP_ROUNDS):
            start = time.perf_counter()
            self.bundle.engine.score(batch)
            best = min(best, time.perf_counter() - start)
        self._ms_per_path_row = best * 1000 / WARM_UP_ROWS

    def score(self, requests: Sequence[Request], received: float | None = None) -> list[Answer]:
        """Answer every request, each by itself: what stands beside it in the body does not change its scores.

        Args:
            received: ``time.monotonic()`` of the arrival, from which deadlines count; default now.

        Raises:
            FeatureStoreError: the store does not answer.
            RequestError: a raw row has no finite score.
            ServerError: a looked-up row has none.
        """
        start = time.monotonic() if received is None else received
        return [self._score_one(request, start) for request in requests]

    def _score_one(self, request: Request, start: float) -> Answer:
        cold_user, cold_items = False, frozenset[str]()
        if request.rows is None:
            if self.reader is None:
                raise FeatureStoreError("this predictor has no feature store: start it with one")
            features = self.reader.read(request.user_id, request.candidates)
            cold_user, cold_items = features.cold_user, features.cold_items
            shared: dict[str, Any] = {**request.context, **features.user}
            if self._user_key is not None:
                shared[self._user_key] = request.user_id
            rows: Sequence[Any] = [
                {**shared, **features.items[item], self._item_key: item} for item in request.candidates
            ]
        else:
            rows = request.rows
        batch = self.bundle.encoder.encode_rows(rows)
        scored = self.bundle.engine.score(batch, self._path_budget(request, start), request.k)
        probability = np.asarray(scored.probability, np.float64)
        _refuse_no_numbers(request, probability)
        best_first = np.argsort(-probability, kind="stable")
        rank = np.empty(len(rows), np.int64)
        rank[best_first] = np.arange(1, len(rows) + 1)
        order = range(len(rows)) if request.k is None else best_first[: request.k].tolist()
        return Answer(
            item_ids=None if request.rows is not None else request.candidates,
            order=tuple(order),
            probability=tuple(probability.tolist()),
            uncertainty=tuple(np.asarray(scored.uncertainty, np.float64).tolist()),
            num_paths=tuple(int(n) for n in scored.num_paths),
            rank=tuple(rank.tolist()),
            cold_user=cold_user,
            cold_items=tuple(item in cold_items for item in request.candidates),
            paths_capped=scored.capped,
            defaulted=request.missing,
            model_version=self.bundle.manifest.model_version,
            bundle_hash=self.bundle.hash,
        )

    def _path_budget(self, request: Request, start: float) -> int | None:
        """Path rows that still fit before the deadline, after the base pass; None without a deadline.

        A far deadline leaves the configured cap: the engine only ever lowers it.
        """
        if request.deadline_ms is None or self._ms_per_path_row == 0.0:
            return None
        left = request.deadline_ms - (time.monotonic() - start) * 1000
        return extra_rows(left, request.num_rows * self._ms_per_path_row, self._ms_per_path_row)


def _refuse_no_numbers(request: Request, probability: np.ndarray) -> None:
    """An answer holds numbers only: huge vectors may overflow within the model, and JSON would turn NaN into null."""
    bad = np.flatnonzero(~np.isfinite(probability))
    if len(bad) == 0:
        return
    place = int(bad[0])
    if request.rows is not None:
        raise RequestError(
            f"rows[{place}] has no finite score: its numbers are too large for the model, give smaller ones",
            field=f"rows[{place}]",
        )
    raise ServerError(
        f"candidate {request.candidates[place]!r} has no finite score: its stored features are too large for the model, "
        "materialize the features again"
    )


def open_scorer(bundle_dir: Path | str, feature_store_dir: Path | str | None) -> Scorer:
    """Load a bundle, open its feature service, and warm both up.

    Raises:
        BundleError: the bundle is damaged.
        FeatureStoreError: the bundle names a feature service, and there is no store or the store does not have it.
    """
    bundle = load_bundle(bundle_dir)
    service = bundle.manifest.feature_service
    reader: OnlineFeatureReader | None = None
    if service:
        if not feature_store_dir:
            raise FeatureStoreError(
                f"model {bundle.manifest.model_version} needs the feature service {service!r}, but no feature store is given: "
                "set THINKTWICE_FEATURE_STORE to the feature store folder"
            )
        from serving.feast_reader import FeastReader

        reader = FeastReader(feature_store_dir, service, bundle.schema)
    scorer = Scorer(bundle, reader)
    scorer.warm_up()
    return scorer
