"""The predictor, independent of any server: validated requests in, answers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.deadline import Deadline
from serving.evidence import HistoryRead, RequestEvidence
from serving.features.counters import CounterReader, HistoryReader
from serving.features.lookup import Entity, Features, OnDefault, OnlineFeatureReader
from serving.features.open_reader import FeatureConfig, open_reader
from serving.protocol.requests import Request, RequestParser
from serving.telemetry.tracing import Tracing
from thinktwice.data.encoded import Batch
from thinktwice.data.evidence import History
from thinktwice.errors import FeatureStoreError, ServerError
from thinktwice.records.answer import REASONS, Corrected, Escalated, Scored
from thinktwice.release.bundle import Bundle, Manifest, load_bundle
from thinktwice.testtime.budget import extra_rows
from thinktwice.testtime.engine import Engine
from thinktwice.testtime.scores import Scored as EngineScored

WARM_UP_ROWS = 100
WARM_UP_ROUNDS = 3
WHY = np.array(["", *REASONS], object)


Logged = tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Answer(Scored):
    """Scores of one request, and data about the work for metrics and logs.

    Attributes:
        unusable: the sides among ``default_features`` whose stored features were too large.
        path_budget: maximum number of extra rows if lower than the configured cap; None if only the cap applies.
        shed: whether extra rows were denied because of server load.
        path_rows: number of extra rows that were scored.
        stages: seconds by stage ("features", "encode", "counters", "engine"). Varies between calls, so it is not part of a body.
        logged: additional values for the prediction log: shared values, and values per row.
        instant: of the request, UTC microseconds; None for raw rows.
        counter_values: [rows, C] counters that were used, NaN for unknown; None if none were.
        history: what became of reading the user's outcomes: "read", "late" or "failed"; "" if no row needed them.
    """

    unusable: tuple[Entity, ...] = ()
    path_budget: int | None = None
    shed: bool = False
    path_rows: int = 0
    stages: Mapping[str, float] = field(default_factory=dict, compare=False)
    logged: Logged = field(default=({}, ()), compare=False)
    instant: int | None = field(default=None, compare=False)
    counter_values: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    history: HistoryRead = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True)
class EscalatedAnswer(Answer, Escalated):
    """An answer of a model that gives some rows a second look."""


@dataclass(frozen=True, kw_only=True)
class CorrectedAnswer(EscalatedAnswer, Corrected):
    """An answer of a model that reads counters."""


def answer_type(engine: Engine) -> type[Answer]:
    """The class of the answers of a model: answers of models that score each row once have fewer fields."""
    if engine.reads_counters:
        return CorrectedAnswer
    return Answer if engine.config.second_look is None else EscalatedAnswer


class NoFiniteScoreError(ServerError):
    """The model has no finite score for a row: the values of the row are too large, or the model is broken.

    Attributes:
        request: index of the request in the body.
        row: index of the row in the request.
    """

    def __init__(self, request: int, row: int) -> None:
        super().__init__(f"request {request}, row {row} has no finite score")
        self.request, self.row = request, row


class Scorer:
    """Scores requests with one bundle.

    While the cap on path rows is not reached (``paths_capped`` is False), the scores of a row are bit-identical (tolerance 0)
    alone, among 500 rows, in any order and after a restart, on the same machine with the same libraries. When the cap is
    reached, :mod:`thinktwice.testtime.engine` defines which rows are admitted; every other row has exactly its base score.

    Args:
        bundle: a loaded bundle.
        reader: looks up features; None accepts raw rows only.
        tracing: receives the spans of the stages.
        max_counter_age: maximum seconds between the watermark of the counters and a request; None: no limit.

    Attributes:
        answer: class of the answers.
    """

    def __init__(
        self,
        bundle: Bundle,
        reader: OnlineFeatureReader | None,
        tracing: Tracing | None = None,
        *,
        max_counter_age: float | None = 60.0,
    ) -> None:
        self.bundle = bundle
        self.reader = reader
        self.answer = answer_type(bundle.engine)
        self._counters: CounterReader | None = None
        self._history: HistoryReader | None = None
        if reader is not None and bundle.reads_counters:
            self._counters = CounterReader(bundle.schema, max_counter_age)
            if bundle.engine.reads_history:
                self._history = HistoryReader(reader.source, bundle.schema, bundle.encoder)
        self.parser = RequestParser(bundle.schema, online=reader is not None, widens=bundle.encoder.widens)
        self._user_key, self._item_key = bundle.schema.key_of("user"), bundle.schema.key_of("item")
        self._item_fields = frozenset(f.name for f in bundle.encoder.fields if f.entity == "item")
        self._shared_fields = frozenset(f.name for f in bundle.encoder.fields if f.entity != "item")
        self._stage = (tracing or Tracing()).stage
        self._ms_per_path_row = 0.0

    @property
    def counter_names(self) -> tuple[str, ...]:
        """Names of the counters of an answer; empty if none are read."""
        return () if self._counters is None else self._counters.definition.names

    def warm_up(self) -> None:
        """Look up and score synthetic values so that the first request is not slow, and measure the cost of a path."""
        if self.reader is not None:
            self.reader.read("" if self._user_key is None else "0", ["0"])
        self._ms_per_path_row = 1000 * self._seconds(WARM_UP_ROWS) / WARM_UP_ROWS

    def sample(self, rows: int) -> dict[str, Any]:
        """A realistic request with this many rows, made of values seen in training, to measure the cost of a request."""
        if self.reader is None or self._item_key is None:
            return {"rows": [{}] * rows}
        item_ids = self.bundle.encoder.values_of(self._item_key)[:rows] or ["0"]
        request: dict[str, Any] = {"candidates": [item_ids[i % len(item_ids)] for i in range(rows)]}
        if self._user_key is not None:
            request["user_id"] = next(iter(self.bundle.encoder.values_of(self._user_key)), "0")
        return request

    def _seconds(self, rows: int) -> float:
        best = float("inf")
        for _ in range(WARM_UP_ROUNDS):
            start = time.perf_counter()
            self.bundle.engine.score(self.bundle.encoder.encode_rows([{}] * rows), 0)
            best = min(best, time.perf_counter() - start)
        return best

    def score(
        self, requests: Sequence[Request], deadline: Deadline | None = None, *, extra_paths: bool = True
    ) -> list[Answer]:
        """Answer every request independently: the other requests in the body do not change its scores.

        Args:
            deadline: deadline of the body; the number of extra paths depends on the remaining time. A request's own
                ``deadline_ms``, counted from the same start, can only shorten it.
            extra_paths: whether the server currently allows extra paths.

        Raises:
            FeatureStoreError: the store does not respond.
            NoFiniteScoreError: a row has no finite score.
        """
        rows_after = sum(request.num_rows for request in requests)
        answers = []
        for index, request in enumerate(requests):
            rows_after -= request.num_rows  # rows that remain to be scored before the same deadline
            try:
                answers.append(self._score_one(request, deadline, extra_paths, rows_after))
            except NoFiniteScoreError as error:
                raise NoFiniteScoreError(index, error.row) from None
        return answers

    def _score_one(self, request: Request, deadline: Deadline | None, extra_paths: bool, rows_after: int) -> Answer:
        start = time.perf_counter()
        features: Features | None = None
        if request.rows is None:
            if self.reader is None:
                raise FeatureStoreError("this predictor has no feature store: start it with one")
            remaining = None if deadline is None else deadline.left(time.monotonic())
            with self._stage("features", rows=len(request.candidates)):
                features = self.reader.read(request.user_id, request.candidates, remaining)
        looked_up = time.perf_counter()
        batch, logged = self.encode(request, features)
        encoded = time.perf_counter()
        budget, shed = self._path_budget(request, deadline, extra_paths, rows_after)
        evidence: RequestEvidence | None = None
        if self._counters is not None and features is not None:
            evidence = self._read_counters(request, features, logged, deadline, rows_after)
        counted = time.perf_counter()
        engine_evidence = None if evidence is None else evidence.for_engine
        with self._stage("engine", rows=request.num_rows):
            scored = self.bundle.engine.score(batch, budget, request.k, engine_evidence)
        probability = np.asarray(scored.probability, np.float64)
        unusable: tuple[Entity, ...] = ()
        if not np.isfinite(probability).all():  # JSON would turn NaN into null
            features, unusable = self._without_unusable(request, features, np.flatnonzero(~np.isfinite(probability)))
            batch, logged = self.encode(request, features)
            scored = self.bundle.engine.score(batch, budget, request.k, engine_evidence)
            probability = np.asarray(scored.probability, np.float64)
        best_first = np.argsort(-probability, kind="stable")
        rank = np.empty(request.num_rows, np.int64)
        rank[best_first] = np.arange(1, request.num_rows + 1)
        order = range(request.num_rows) if request.k is None else best_first[: request.k].tolist()
        stages = {
            "features": looked_up - start,
            "encode": encoded - looked_up,
            "engine": time.perf_counter() - counted,
        }
        if evidence is not None:
            stages["counters"] = counted - encoded
        probabilities = tuple(probability.tolist())
        return self.answer(
            **self._moves(batch, scored, probabilities, features, evidence),
            item_ids=None if request.rows is not None else request.candidates,
            order=tuple(order),
            probability=probabilities,
            uncertainty=tuple(np.asarray(scored.uncertainty, np.float64).tolist()),
            num_paths=tuple(scored.num_paths.tolist()),
            rank=tuple(rank.tolist()),
            cold_user=features is not None and features.cold_user,
            cold_items=() if features is None else features.cold_items,
            paths_capped=scored.capped,
            defaulted=request.missing,
            model_version=self.bundle.manifest.model_version,
            bundle_hash=self.bundle.hash,
            stale_user=features is not None and features.stale_user,
            stale_items=() if features is None else features.stale_items,
            stale=features is not None and (features.stale_user or any(features.stale_items)),
            default_features=() if features is None else features.defaulted,
            unusable=unusable,
            path_budget=budget,
            shed=shed,
            path_rows=scored.path_rows,
            stages=stages,
            logged=logged,
            instant=request.instant,
        )

    def _read_counters(
        self, request: Request, features: Features, logged: Logged, deadline: Deadline | None, rows_after: int
    ) -> RequestEvidence:
        """The counters of a request, and its history on demand; neither if no time is left for more than the base pass."""
        assert self._counters is not None and request.instant is not None
        instant, rows = request.instant, request.num_rows
        limit = Deadline.of(request.deadline_ms, deadline)
        base_s = (rows + rows_after) * self._ms_per_path_row / 1000

        def left() -> float | None:
            return None if limit is None else limit.left(time.monotonic()) - base_s

        if (remaining := left()) is not None and remaining <= 0:
            return RequestEvidence("late")
        topics = self._counters.topics_of(features.items) if features.topics is None else features.topics
        read = self._counters.read(features.states, rows, instant, logged[0], topics)
        if read.trouble is not None:
            return RequestEvidence(read.trouble)
        history: Callable[[], History] | None = None
        if (reader := self._history) is not None:

            def history() -> History:
                return reader.read(request.user_id, instant, rows, left())

        return RequestEvidence("used", read.values, history)

    def _moves(
        self,
        batch: Batch,
        scored: EngineScored,
        probability: tuple[float, ...],
        features: Features | None,
        evidence: RequestEvidence | None,
    ) -> dict[str, Any]:
        """What moved each score, for answers that tell it."""
        if self.answer is Answer:
            return {}
        moved = scored.base_probability is not scored.probability
        out: dict[str, Any] = {
            "base_probability": tuple(scored.base_probability.tolist()) if moved else probability,
            "reason": self._reasons(batch, scored, features),
        }
        if self.bundle.reads_counters:
            out |= {"corrected": tuple(scored.corrected.tolist()), "counters": ""}
        if evidence is not None:
            out |= {"counters": evidence.counters, "counter_values": evidence.values, "history": evidence.history_read}
        return out

    def _reasons(self, batch: Batch, scored: EngineScored, features: Features | None) -> tuple[str, ...]:
        """Why each row got a second look; empty if it got none."""
        if scored.path_rows == 0:
            return ("",) * len(batch)
        column = self.bundle.encoder.column_of(self._user_key)
        new_user: Any = features is not None and features.cold_user
        if column is not None:
            new_user = batch.ids[:, column].numpy() == 0
        why = np.where(new_user, 1, np.where(scored.thin_support, 2, 3))
        return tuple(WHY[np.where(scored.num_paths > 1, why, 0)].tolist())

    def encode(self, request: Request, features: Features | None) -> tuple[Batch, Logged]:
        """Encode the rows of a request for the model. Returns the batch and the values for the prediction log."""
        encoder = self.bundle.encoder
        if features is None:
            assert request.rows is not None
            return encoder.encode_rows(request.rows), ({}, request.rows)
        shared: dict[str, Any] = {**request.context, **features.user}
        if self._user_key is not None:
            shared[self._user_key] = request.user_id
        items = features.encoded_items
        if items is None:
            rows = [{**row, self._item_key: item} for item, row in zip(request.candidates, features.items, strict=True)]
            items = encoder.encode_side(rows, self._item_fields)
        return encoder.join(encoder.encode_side([shared], self._shared_fields), items), (shared, features.items)

    def _without_unusable(
        self, request: Request, features: Features | None, unscored: np.ndarray
    ) -> tuple[Features, tuple[Entity, ...]]:
        """Features with which every row has a finite score, and the sides that were dropped.

        The features of the items of the unscored rows, of the user, or of both count as missing, because huge numbers may overflow
        within the model.

        Raises:
            NoFiniteScoreError: looked-up features are not the cause.
        """
        attempts: tuple[tuple[Entity, ...], ...] = (("item",), ("user",), ("user", "item"))
        for sides in attempts if features is not None else ():
            assert features is not None
            nothing: Mapping[str, Any] = {}
            positions = set(unscored.tolist()) if "item" in sides else set()
            reduced = replace(
                features,
                user=dict.fromkeys(features.user) if "user" in sides else features.user,
                items=[nothing if i in positions else row for i, row in enumerate(features.items)],
                defaulted=tuple(dict.fromkeys((*features.defaulted, *sides))),
                encoded_items=None,
            )
            scored = self.bundle.engine.score(self.encode(request, reduced)[0], 0, request.k)
            if np.isfinite(np.asarray(scored.probability)).all():
                return reduced, sides
        raise NoFiniteScoreError(0, int(unscored[0]))

    def _path_budget(
        self, request: Request, deadline: Deadline | None, extra_paths: bool, rows_after: int
    ) -> tuple[int | None, bool]:
        """Maximum number of extra rows, None if only the configured cap applies; and whether load reduced it."""
        cap = self.bundle.engine.max_path_rows
        allowed = cap
        request_deadline = Deadline.of(request.deadline_ms, deadline)
        if request_deadline is not None and self._ms_per_path_row > 0.0:
            remaining_ms = request_deadline.left(time.monotonic()) * 1000
            base_ms = (request.num_rows + rows_after) * self._ms_per_path_row
            allowed = min(allowed, extra_rows(remaining_ms, base_ms, self._ms_per_path_row))
        shed = not extra_paths and allowed > 0
        if shed:
            allowed = 0
        return (allowed if allowed < cap else None), shed


def open_scorer(
    bundle_dir: Path | str,
    feature_store_dir: Path | str | None,
    *,
    features: FeatureConfig | None = None,
    on_default: OnDefault | None = None,
    tracing: Tracing | None = None,
    checked: Manifest | None = None,
) -> Scorer:
    """Load a bundle, open its feature service, and warm both up.

    Args:
        features: settings of the feature lookup.
        on_default: called for every lookup that was answered with defaults; without it such a lookup is an error.
        checked: see :func:`thinktwice.release.bundle.load_bundle`.

    Raises:
        BundleError: the bundle is damaged.
        FeatureStoreError: the bundle names a feature service, and there is no store or the store does not have it; or the bundle
            reads counters, and those of the store are of another definition.
    """
    bundle = load_bundle(bundle_dir, checked)
    settings = features or FeatureConfig()
    service = bundle.manifest.feature_service
    reader: OnlineFeatureReader | None = None
    if service:
        if not feature_store_dir:
            raise FeatureStoreError(
                f"model {bundle.manifest.model_version} needs the feature service {service!r}, but no feature store is given: "
                "set THINKTWICE_FEATURE_STORE to the feature store folder"
            )
        reader = open_reader(
            feature_store_dir,
            service,
            bundle.schema,
            bundle.encoder,
            settings,
            on_default,
            states=bundle.reads_counters,
        )
    scorer = Scorer(bundle, reader, tracing, max_counter_age=settings.max_counter_age_seconds)
    scorer.warm_up()
    return scorer
