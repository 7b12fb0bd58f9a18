"""The first part of the report: the order of its questions, small screens, odd results, and its numbers as a table."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.evaluate import samples
from tests.pages.test_hostile_text import Seen
from tests.testtime.world import make_training_set
from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.evaluation import TrainingEvaluation, read_evaluation
from thinktwice.evaluate.findings import sentences
from thinktwice.evaluate.findings.baselines import Scored, compared, is_good
from thinktwice.evaluate.findings.importance import Part, importance
from thinktwice.evaluate.findings.pretraining import described, pretraining
from thinktwice.evaluate.findings.record import Findings
from thinktwice.evaluate.findings.weakness import Slice, weakness
from thinktwice.evaluate.report import render
from thinktwice.evaluate.report_findings import SHOWN_FIELDS, SHOWN_SLICES
from thinktwice.evaluate.tidy import Number, to_csv
from thinktwice.models.config import DeepFMConfig
from thinktwice.pretrain.config import PretrainConfig
from thinktwice.pretrain.pretrain import pretrain
from thinktwice.pretrain.record import DifficultyRecord, LossRecord, PretrainRecord
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.stats.significance import clusters_of
from thinktwice.train.config import FinetuneConfig
from thinktwice.train.finetune import finetune

QUESTIONS = (
    "Is the model good?",
    "Did it overfit?",
    "Which fields matter?",
    "Where is it weak?",
    "What did pre-training learn?",
    "What do training and the second look bring?",
    "Is extra work worth it?",
)
NO_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf|None)(?![A-Za-z])")


@pytest.fixture(scope="module")
def content(finished: Path) -> TrainingEvaluation:
    return read_evaluation(finished / "evaluation-good" / "evaluation.json")


def words_of(page: str) -> str:
    return " ".join(Seen(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).words)


def test_first_things_first() -> None:
    page = render(samples.EVALUATION)
    places = [page.index(f">{question}</h2>") for question in QUESTIONS]
    assert places == sorted(places)
    first = page[: places[0]]
    assert re.findall(r"<section class=\"card verdict on\">(.*?)</section>", first) == [
        f"<p>{samples.FINDINGS.headline}</p>"
    ]
    assert 3 <= first.count('class="tile"') <= 5


def test_the_first_part_needs_no_wide_screen() -> None:
    """At 400 px a card is 356 px wide inside: what is drawn to scale fits, and so do the tables."""
    page = render(samples.EVALUATION)
    first = page[page.index("Is the model good?") : page.index("What do training and the second look bring?")]
    widths = [int(w) for w in re.findall(r"min-width:(\d+)px", first)]
    assert widths and max(widths) <= 356
    tables = re.findall(r"<table[^>]*>", first)
    assert len(tables) >= 2 and all("fit" in tag for tag in tables)


def test_a_file_of_an_earlier_version_has_the_other_parts() -> None:
    page = render(samples.EVALUATION.model_copy(update={"findings": None}))
    assert "Is the model good?" not in page and "Is extra work worth it?" in page and ">Training</h2>" in page
    assert samples.EVALUATION.verdict[0] in page


def test_the_report_of_a_run_is_small(finished: Path) -> None:
    size = (finished / "evaluation-good" / "report.html").stat().st_size
    assert 20_000 < size < 400_000


def test_every_field_and_every_slice_is_on_the_page() -> None:
    """Also of a log with many: what matters less is folded away."""
    fields = tuple(samples.importance(f"field-{i}-") for i in range(SHOWN_FIELDS + 5))
    found = tuple(samples.weak_slice(f"slice-{i}-") for i in range(SHOWN_SLICES + 5))
    findings = samples.FINDINGS.model_copy(
        update={
            "importance": samples.FINDINGS.importance.model_copy(update={"fields": fields}),
            "weakness": samples.FINDINGS.weakness.model_copy(update={"slices": found}),
        }
    )
    page = render(samples.EVALUATION.model_copy(update={"findings": findings}))
    assert all(page.count(f">{one.name}<") == 1 for one in (*fields, *found))
    assert "5 fields that matter less" in page and "5 more slices" in page


def test_the_kept_weights_are_marked() -> None:
    page = render(samples.EVALUATION)
    part = page[page.index("Did it overfit?") : page.index("Which fields matter?")]
    assert part.count("kept weights: plain, epoch 1, logloss 0.6000") == 1
    assert part.count("kept weights: plain, epoch 1, AUC 0.7000") == 1


# ---- one sentence


def comparison(auc: tuple[float, float, float], change: tuple[float, float, float]) -> samples.Comparison:
    shipped, lead = (
        samples.MeasuredInterval(value=v, low=low, high=high, significant=low > 0 or high < 0)
        for v, low, high in (auc, change)
    )
    baseline = samples.BASELINE.model_copy(update={"auc_change": lead, "name": "logistic regression"})
    return samples.FINDINGS.comparison.model_copy(update={"auc": shipped, "baselines": (baseline,)})


HEADLINES = {
    "good": ((0.7, 0.68, 0.72), (0.05, 0.02, 0.08), "The model beats one-hot logistic regression: it puts", True),
    "no better": ((0.7, 0.68, 0.72), (0.01, -0.02, 0.04), "The model is not proven better than one-hot logistic regression", False),
    "worse": ((0.7, 0.68, 0.72), (-0.05, -0.08, -0.02), "One-hot logistic regression is better than the model", False),
    "chance": ((0.52, 0.48, 0.56), (0.05, 0.02, 0.08), "The model is not proven better than chance", False),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADLINES)
def test_the_headline(name: str) -> None:
    auc, change, expected, good = HEADLINES[name]
    found = comparison(auc, change)
    assert sentences.headline(found).startswith(expected)
    assert is_good(found) is good


def test_both_baselines_are_beaten_only_if_both_are() -> None:
    one = comparison((0.7, 0.68, 0.72), (0.05, 0.04, 0.06))
    wide = samples.MeasuredInterval(value=0.07, low=-0.01, high=0.15, significant=False)
    other = samples.BASELINE.model_copy(update={"auc_change": wide})  # weaker, but measured less exactly
    both = one.model_copy(update={"baselines": (*one.baselines, other)})
    assert sentences.headline(both).startswith("The model is not proven better than the popularity of the item")
    assert not is_good(both)
    beaten = both.model_copy(update={"baselines": (*one.baselines, *one.baselines)})
    assert sentences.headline(beaten).startswith("The model beats both baselines") and is_good(beaten)


# ---- odd results


@st.composite
def odd_results(draw: st.DrawFn) -> Findings:
    """Findings on few rows, one user, one class, constant or extreme scores, constant fields, no slices, no baselines."""
    rows = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    label = (rng.random(rows) < share).astype(np.float64)
    user = {"one": np.zeros(rows), "none": np.full(rows, -1), "many": rng.integers(0, 9, rows)}[
        draw(st.sampled_from(["one", "none", "many"]))
    ].astype(np.int64)
    scale = draw(st.sampled_from([0.0, 1.0, 1e4]))
    logit = rng.normal(0, 1, rows) * scale
    cluster = clusters_of(user)
    names = draw(st.sampled_from([(), ("popularity",), ("popularity", "logistic regression")]))
    baselines = [Scored(name, rows, 1.0, rng.normal(0, 1, rows) * draw(st.sampled_from([0.0, 1.0]))) for name in names]
    found = compared(label, cluster, logit, baselines, [])
    ids = rng.integers(0, draw(st.sampled_from([1, 3])), (rows, 2)).astype(np.int32)
    encoded = EncodedRows(ids, {}, {}, label.astype(np.float32), user, np.arange(rows))
    parts = (Part("a", "user", 0), Part("b", "item", 1))[: draw(st.integers(1, 2))]
    many = np.tile(np.arange(rows), 4)
    slices = [Slice(f"s{i}", "category", rng.random(len(many)) < 0.5) for i in range(draw(st.integers(0, 3)))]
    pre = draw(st.sampled_from([None, *RECORDS]))
    return Findings(
        headline=sentences.headline(found),
        good=is_good(found),
        comparison=found,
        learning=draw(st.sampled_from([(), samples.FINDINGS.learning])),
        importance=importance(encoded, cluster, parts, lambda r: r.ids.sum(axis=1) * scale),
        weakness=weakness(label[many], logit[many], clusters_of(user[many]), slices),
        pretraining=None if pre is None else described(RECORDS[pre]),
    )


def record(**changes: object) -> PretrainRecord:
    known = PretrainRecord(
        format=PretrainRecord.FORMAT, seed=0, torch="2", kind="hetegenctr", config=PretrainConfig(balancing="kendall"),
        curve=(
            LossRecord(epoch=0.5, label=0.7, fields={"a": 2.0, "b": 0.5, "c": 1.0}, weights={"a": 1.0, "b": 1.0, "c": 1.0}),
            LossRecord(epoch=1.0, label=0.6, fields={"a": 1.9, "b": 0.3, "c": 0.9}, weights={"a": 0.5, "b": 1.4, "c": 0.9}),
        ),
        unigram_entropy={"a": 2.1, "b": 0.2}, sampled_losses=("c",), rows={"train": 9},
        difficulties={name: DifficultyRecord(start=1.0, end=0.9, weight=w, equilibrium=e) for name, w, e in (("a", 0.5, 0.25), ("b", 1.4, 1.5), ("c", 0.9, 0.5))},
        by_class={"click": {"click": 1.0, "no click": 1.2, "hidden": 1.1}, "no click": {"click": 1.2, "no click": 1.0, "hidden": 1.1}},
    )  # fmt: skip
    return known.model_copy(update=changes)


ONE = LossRecord(epoch=1.0, label=0.6, fields={"a": 0.0}, weights={"a": 1.0})
RECORDS = {
    "kendall": record(),
    "without balancing": record(kind="dgenctr", difficulties={}, curve=(LossRecord(epoch=1.0, label=0.6, fields={"a": 1.0}),)),
    "one class": record(by_class={"click": {"click": 1.0, "no click": 1.2, "hidden": 1.1}}),
    "one field": record(curve=(ONE,), difficulties={"a": DifficultyRecord(start=0.0, end=0.0, weight=0.0, equilibrium=0.0)}),
    "nothing masked": record(curve=(LossRecord(epoch=1.0, label=0.6, fields={}),), difficulties={}, by_class={}),
}  # fmt: skip


@given(odd_results())
@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_odd_results_are_sentences_and_no_number_is_made_up(found: Findings) -> None:
    run = samples.EVALUATION.model_copy(update={"findings": found})
    page = render(run)
    shown = words_of(page)
    assert not NO_NUMBER.search(shown), NO_NUMBER.search(shown)
    assert (UNDEFINED in shown) or found.comparison.auc.value is not None
    if found.comparison.auc.value is None:
        assert "cannot be said" in found.headline
    elif found.comparison.auc.low is None:
        assert "chance cannot be excluded" in found.headline
    if not found.weakness.slices:
        assert "too few rows" in found.weakness.sentence
    if not found.learning:
        assert "There is no record of the training" in shown
    TrainingEvaluation.model_validate_json(run.model_dump_json())  # finite numbers only
    for line in csv.DictReader(io.StringIO(to_csv(run))):
        assert line["value"] == "" or math.isfinite(float(line["value"]))


# ---- pre-training


def test_the_published_weights_fall_with_the_loss() -> None:
    found = described(RECORDS["kendall"])
    assert found.correlation == -1.0
    assert "a, the hardest field to restore (loss 1.90), ended with the weight 0.50" in found.sign
    assert "b, the easiest (loss 0.30), with 1.40" in found.sign and "Its loss does the opposite" in found.sign
    assert found.equilibrium.startswith("1 of 3 weights reached their equilibrium") and "a by 2.00" in found.equilibrium
    assert found.classes.startswith("Rows of both classes are restored better under their own label")
    assert found.summary.startswith("The loss of 3 of 3 fields fell. 1 of 2 fields")
    page = render(
        samples.EVALUATION.model_copy(update={"findings": samples.FINDINGS.model_copy(update={"pretraining": found})})
    )
    shown = " ".join(words_of(page).split())
    assert "a loss 1.900 0.500 c loss 0.900 0.900 b loss 0.300 1.400" in shown  # the hardest field first
    other = described(record(config=PretrainConfig(balancing="dro")))
    assert other.sign == "" and other.equilibrium != ""
    rising = described(record(curve=tuple(
        point.model_copy(update={"weights": {"a": 2.0, "b": 0.5, "c": 1.0}}) for point in record().curve
    )))  # fmt: skip
    assert rising.correlation == 1.0 and "This run does not show it yet" in rising.sign


def test_a_real_run_shows_it_and_the_model_keeps_the_record(tmp_path: Path) -> None:
    make_training_set(tmp_path / "set", rows=2000)
    config = PretrainConfig(balancing="kendall", batch_size=64, epochs=6.0, rate=1e-2)
    made = pretrain(tmp_path / "set", tmp_path / "pre", DeepFMConfig(dim=4, hidden=(8,)), config, kind="hetegenctr")
    settings = FinetuneConfig(table_l2=(1e-3,), augmentations=("none",), epochs=1.0, trial_epochs=1.0)
    finetune(
        tmp_path / "set", tmp_path / "model", DeepFMConfig(dim=4, hidden=(8,)), settings, init_dir=tmp_path / "pre"
    )
    found = pretraining(tmp_path / "model")
    assert found == described(made)
    assert found is not None and found.correlation is not None and found.correlation < -0.5
    assert "Its loss does the opposite" in found.sign
    assert pretraining(tmp_path / "pre") is None


# ---- numbers


def test_every_number_of_the_first_part_is_in_the_table(content: TrainingEvaluation) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(content))))
    assert list(lines[0]) == list(Number._fields)
    found = content.findings
    assert found is not None

    def value(**where: str) -> float:
        (line,) = [line for line in lines if all(line[name] == text for name, text in where.items())]
        return float(line["value"])

    for column in content.columns:
        assert value(section="model", subject=column.key, metric="auc") == column.metrics.auc
    for baseline in found.comparison.baselines:
        assert value(section="lead", against=baseline.name, metric="auc") == baseline.auc_change.value
    for one in found.importance.fields:
        assert value(section="importance of fields", subject=one.name, metric="auc_lost") == one.auc.value
    for part in found.weakness.slices:
        assert value(section="slice", subject=part.name, metric="click_rate") == part.click_rate
    keys = [tuple(line[name] for name in ("section", "subject", "metric", "against", "at")) for line in lines]
    assert len(keys) == len(set(keys))  # a number is there once


def test_names_with_separators_and_quotes_survive() -> None:
    name = 'site = a,"b"\r\nc;=1+1'
    weak = samples.FINDINGS.weakness.model_copy(update={"slices": (samples.weak_slice(name),)})
    run = samples.EVALUATION.model_copy(update={"findings": samples.FINDINGS.model_copy(update={"weakness": weak})})
    lines = list(csv.DictReader(io.StringIO(to_csv(run), newline="")))
    assert {line["subject"] for line in lines if line["section"] == "slice"} == {name}
