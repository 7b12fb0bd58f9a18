"""Permutation importance: how much worse the scores of what ships become when the values of a field are exchanged between rows.

Shapes: R test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.evidence import Evidence
from thinktwice.data.instant.definition import definition_of
from thinktwice.data.training_set import TrainingSet
from thinktwice.evaluate import STAGE
from thinktwice.evaluate.findings import sentences
from thinktwice.evaluate.findings.record import FieldGroup, FieldImportance, Importance, Metric
from thinktwice.models.fields import CounterFields
from thinktwice.progress import counter
from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.significance import Interval, auc_influence, influence_interval, paired_mean
from thinktwice.versioned import MeasuredInterval

MAX_SCORED = 250_000  # forward passes of all exchanges together
LEAST_ROWS = 1000
MAX_REPEATS = 5
HISTORY = "recent outcomes"
GROUPS: tuple[FieldGroup, ...] = ("user", "item", "context", "sequences", "counters")

Score = Callable[[EncodedRows], np.ndarray]  # log-odds [R]


@dataclass(frozen=True)
class Part:
    """One input of the model whose values are exchanged together: a field, or a group of counters of the instant."""

    name: str
    group: FieldGroup
    column: int | None = None  # of ``ids``
    counters: tuple[int, ...] = ()  # columns of the evidence


def parts_of(data: TrainingSet, *, counters: bool, history: bool) -> tuple[Part, ...]:
    """All inputs of a model of this training set, with the counters of the instant and the outcomes of the user if it reads them."""
    parts = []
    for field in data.schema.model_fields_in_order():
        group: FieldGroup = field.entity
        if field.origin == "statistic":
            group = "counters"
        elif field.kind == "sequence" and not field.has_own_values:
            group = "sequences"
        parts.append(Part(field.name, group, data.encoder.column_of(field.name)))
    definition = definition_of(data.schema)
    if counters and definition is not None and data.counter_scale is not None:
        found = CounterFields.of(definition, data.counter_scale).groups
        parts += [Part(one.name, "counters", counters=one.columns) for one in found]
    if history:
        parts.append(Part(HISTORY, "sequences"))
    return tuple(parts)


def importance(
    rows: EncodedRows, cluster: np.ndarray, parts: tuple[Part, ...], score: Score, *, passes: float = 1.0, seed: int = 0
) -> FieldImportance:
    """Importance of every part, and of all parts of a group together.

    Args:
        rows: test rows in order of time; of many, evenly spaced ones are used.
        cluster: [R] user codes.
        score: log-odds of rows by what ships; takes ``passes`` forward passes a row.
    """
    members = {group: tuple(part for part in parts if part.group == group) for group in GROUPS}
    together = {group: found for group, found in members.items() if found}
    exchanges = len(parts) + sum(len(found) > 1 for found in together.values())
    affordable = int(MAX_SCORED / max(passes, 1.0) / max(exchanges, 1))
    if len(rows) > (most := max(LEAST_ROWS, affordable)):
        index = np.linspace(0, len(rows) - 1, most).astype(np.int64)
        rows, cluster = rows.take(index), np.unique(cluster[index], return_inverse=True)[1]
    repeats = int(np.clip(affordable // max(len(rows), 1), 1, MAX_REPEATS))
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(rows)) for _ in range(repeats)]
    distinct = {*together.values(), *((part,) for part in parts)}
    advance = counter(stage=STAGE, total=1 + repeats * len(distinct), label="field importance")

    def counted(rows: EncodedRows) -> np.ndarray:
        logit = score(rows)
        advance(1)
        return logit

    label, intact = rows.label.astype(np.float64), counted(rows)

    @cache
    def scores(exchanged: tuple[Part, ...]) -> list[np.ndarray]:
        return [counted(with_exchanged(rows, exchanged, order)) for order in orders]

    def measured(name: str, exchanged: tuple[Part, ...], comparisons: int) -> Importance:
        found, confidence = scores(exchanged), 1 - 0.05 / comparisons
        loss = np.mean([row_logloss(label, z) for z in found], axis=0) - row_logloss(label, intact)
        return Importance(
            name=name,
            group=exchanged[0].group,
            auc=MeasuredInterval.of(_auc_loss(label, intact, found, cluster, confidence)),
            logloss=MeasuredInterval.of(paired_mean(loss, cluster, confidence)),
        )

    metric: Metric = "logloss" if label.min() == label.max() else "auc"
    groups = _ordered((measured(group, found, len(together)) for group, found in together.items()), metric)
    fields = _ordered((measured(part.name, (part,), len(parts)) for part in parts), metric)
    return FieldImportance(
        metric=metric,
        rows=len(rows),
        repeats=repeats,
        groups=groups,
        fields=fields,
        sentence=sentences.importance(groups, fields, metric),
    )


def with_exchanged(rows: EncodedRows, parts: Iterable[Part], order: np.ndarray) -> EncodedRows:
    """The rows with the values of some parts taken from the rows at ``order`` [R]."""
    ids, sequences, vectors, evidence = rows.ids.copy(), dict(rows.sequences), dict(rows.vectors), rows.evidence
    weights = dict(rows.weights)
    for part in parts:
        if part.column is not None:
            ids[:, part.column] = rows.ids[order, part.column]
        elif part.name in sequences:
            sequences[part.name] = rows.sequences[part.name][order]
            if part.name in weights:
                weights[part.name] = rows.weights[part.name][order]
        elif part.name in vectors:
            vectors[part.name] = rows.vectors[part.name][order]
        elif evidence is not None and part.counters:
            counters = np.array(evidence.counters)
            counters[:, part.counters] = evidence.counters[order][:, part.counters]
            evidence = Evidence(counters, evidence.history)
        elif evidence is not None and part.name == HISTORY:
            evidence = Evidence(evidence.counters, evidence.take(order).history)
    return replace(rows, ids=ids, sequences=sequences, vectors=vectors, evidence=evidence, weights=weights)


def _auc_loss(
    label: np.ndarray, intact: np.ndarray, exchanged: list[np.ndarray], cluster: np.ndarray, confidence: float
) -> Interval:
    """AUC before minus AUC after, the mean over the exchanges; all nan with one class only."""
    if label.min() == label.max():
        return Interval(float("nan"), float("nan"), float("nan"))
    before, influence = auc_influence(label, intact)
    found = [auc_influence(label, z) for z in exchanged]
    after = float(np.mean([area for area, _ in found]))
    return influence_interval(before - after, influence - np.mean([i for _, i in found], axis=0), cluster, confidence)


def _ordered(found: Iterable[Importance], metric: Metric) -> tuple[Importance, ...]:
    return tuple(sorted(found, key=lambda one: (-(one.by(metric).value or 0.0), one.name)))
