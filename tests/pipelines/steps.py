"""The steps of the pipeline, run one after the other in this process: the same functions, without the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from thinktwice import progress
from thinktwice.console.events import events_in
from thinktwice.errors import ThinktwiceError
from thinktwice.evaluate.evaluation import TrainingEvaluation, recorded_evaluation
from thinktwice.files import read_json
from thinktwice.release.blessing import read_blessing


@dataclass
class Outcome:
    """How far a log came: the last step, the sentence that ended it ("" when all steps ran), and all that was told."""

    step: str
    sentence: str
    told: list[str]
    folder: Path
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def evaluation(self) -> TrainingEvaluation:
        return recorded_evaluation(self.folder / "bundle")


def run_steps(
    folder: Path,
    log: Path,
    schema: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    split: str = "time",
    seed: int = 0,
    test_time: str = "lean",
) -> Outcome:
    """Run all steps up to packaging on a log. An error that is not ours is raised: no log may lead to one."""
    from components.data.ingest.component import ingest
    from components.data.validate.component import validate
    from components.deployment.package.component import package
    from components.evaluation.bless.component import bless
    from components.evaluation.evaluate.component import evaluate
    from components.evaluation.fit_test_time.component import fit_test_time
    from components.features.build_training_set.component import build_training_set
    from components.features.materialize.component import materialize
    from components.training.finetune.component import finetune
    from components.training.pretrain.component import pretrain

    folder.mkdir(parents=True, exist_ok=True)
    events = folder / "progress.jsonl"
    monkeypatch.setenv(progress.VARIABLE, str(events))
    made: dict[str, Any] = {}
    step = ""

    def out(name: str, kind: type = dsl.Artifact) -> Any:
        made[name] = kind(name=name, uri=str(folder / name), metadata={})
        return made[name]

    def ended(sentence: str = "") -> Outcome:
        told = (
            [e["text"] for e in events_in(events.read_bytes()) if e["event"] in ("note", "message")]
            if events.exists()
            else []
        )
        metrics = {name: dict(a.metadata) for name, a in made.items() if name.startswith("metrics")}
        return Outcome(step, sentence, told, folder, metrics)

    try:
        step = "ingest"
        snapshot_id, feature_version = ingest.python_func(
            "parquet", str(log), str(schema), 0, seed, "test", out("log", dsl.Dataset)
        )
        step = "validate"
        passed = validate.python_func(
            made["log"],
            "test",
            out("clean"),
            out("quarantine"),
            out("report"),
            out("metrics_validate", dsl.Metrics),
            out("verdict"),
        )
        if not passed:
            return ended("; ".join(read_json(folder / "verdict" / "verdict.json")["reasons"]))
        step = "materialize"
        materialize.python_func(
            made["clean"], feature_version, "sqlite", "", "test", out("store"), out("metrics_store", dsl.Metrics)
        )
        step = "build-training-set"
        build_training_set.python_func(
            made["clean"], made["store"], made["log"], split, seed, "test", out("set"), out("metrics_set", dsl.Metrics)
        )
        step = "pretrain"
        pretrain.python_func(made["set"], "tiny", seed, "test", out("pre"), out("metrics_pre", dsl.Metrics))
        step = "finetune"
        for name, start in (("plain", None), ("pretrained", made["pre"])):
            finetune.python_func(
                made["set"], "tiny", seed, "test", out(name), out(f"metrics_{name}", dsl.Metrics), start
            )
        step = "fit-test-time"
        models = (made["set"], made["plain"], made["pretrained"])
        fit_test_time.python_func(
            *models, "tiny", test_time, "test", out("test_time"), out("metrics_time", dsl.Metrics)
        )
        step = "evaluate"
        evaluate.python_func(
            *models, made["test_time"], snapshot_id, feature_version, "tiny", test_time, seed, "test",
            out("bundle"), out("page"), out("metrics_evaluate", dsl.Metrics), out("metrics_roc", dsl.ClassificationMetrics),
            out("numbers"),
        )  # fmt: skip
        step = "bless"
        blessed = bless.python_func(
            made["set"],
            made["bundle"],
            str(folder / "state"),
            "test",
            out("blessing"),
            out("metrics_bless", dsl.Metrics),
        )
        if not blessed:
            return ended("; ".join(read_blessing(folder / "blessing").reasons))
        step = "package"
        package.python_func(made["bundle"], made["blessing"], "test", out("archive"))
        return ended()
    except ThinktwiceError as error:
        return ended(str(error))
