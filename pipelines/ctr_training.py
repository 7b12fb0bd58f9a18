"""The training pipeline: from a log of impressions to a served model.

One graph, written once. It runs on a laptop under KFP's local runner and compiles for a cluster; the profile decides
only where tasks run (see `profiles.py`).
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

import thinktwice
from components.choices import Profile, TrainingStep
from components.data.ingest.component import ingest
from components.data.validate.component import validate
from components.deployment.challenge.component import challenge
from components.deployment.deploy.component import deploy
from components.deployment.deploy_to_cluster.component import deploy_to_cluster
from components.deployment.package.component import package
from components.evaluation.bless.component import bless
from components.evaluation.evaluate.component import evaluate
from components.evaluation.fit_test_time.component import fit_test_time
from components.features.build_training_set.component import build_training_set
from components.features.materialize.component import materialize
from components.step import IMAGE
from components.training.finetune.component import finetune
from components.training.launch_trainjob.component import launch_trainjob
from components.training.pretrain.component import pretrain
from components.training.remove_trainjobs.component import remove_trainjobs
from pipelines.nodes import Nodes
from pipelines.profiles import (
    DEFAULT_NODES,
    DEFAULT_STATE_DIR,
    DEFAULT_TARGET,
    apply_profile,
    check_profile,
    job_placement,
    pipeline_config,
    with_online_store,
    with_registry,
)
from thinktwice.choices import MAX_COST

NAME = "ctr-training"


def build_pipeline(
    profile: Profile, image: str = IMAGE, nodes: Nodes = DEFAULT_NODES, *, scheduled: bool = False
) -> GraphComponent:
    """The graph for one profile, every step in `image`, on `nodes`.

    A `scheduled` run reads the log until the time that it is scheduled for, whenever it really starts; `until` is not read then.

    Each verdict (validation, blessing) is an output of a step that always succeeds; the following `dsl.If` is the gate.
    Steps with an effect outside their own outputs (`bless` reads the champion, `deploy` replaces it) are never cached, nor are TrainJobs.

    Raises:
        ValueError: the profile is unknown.
    """
    check_profile(profile)
    configure = partial(apply_profile, profile=profile, image=image, nodes=nodes)

    def train(name: TrainingStep, **inputs: Any) -> PipelineTask:
        """A training step: a KFP task of its own, or one that waits for a TrainJob."""
        if profile == "gpu-trainjob":
            job = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "image": image, "placement": job_placement(nodes)}
            task = launch_trainjob(training_step=name, **job, **inputs).set_display_name(f"{name} (TrainJob)")
            return configure(task, "launch")
        return configure({"pretrain": pretrain, "finetune": finetune}[name](**inputs), "train")

    def model_of(task: PipelineTask) -> Any:
        return task.outputs["pretrained" if "pretrained" in task.outputs else "model"]

    def cleaned_up() -> AbstractContextManager[Any]:
        """What the run leaves in the cluster is removed however it ends."""
        if profile != "gpu-trainjob":
            return nullcontext()
        removal = configure(remove_trainjobs(run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER), "launch")
        return dsl.ExitHandler(removal, name="remove-trainjobs-at-the-end")

    @dsl.pipeline(
        name=NAME,
        description="Validate a log, train a click-through-rate model, deploy it if it is better.",
        pipeline_config=pipeline_config(profile),
    )
    def ctr_training(
        source: str = "ml-1m",
        source_path: str = "",
        schema_path: str = "",
        limit: int = 0,
        since: str = "",
        until: str = "",
        data_seed: int = 0,
        seed: int = 0,
        split: str = "time",
        split_seed: int = 0,
        recipe: str = "default",
        backbone: str = "",
        pretraining: str = "",
        checkpoints: str = "",
        continue_from: str = "",
        continue_version: str = "",
        test_time_mode: str = "lean",
        max_cost: float = MAX_COST,
        challenger: str = "",
        serving_namespace: str = "",
        model_storage: str = "",
        canary_percent: int = 10,
        online_store: str = "sqlite",
        redis_address: str = "",
        target: str = DEFAULT_TARGET[profile],
        state_dir: str = DEFAULT_STATE_DIR[profile],
        code_version: str = thinktwice.__version__,
        data_version: str = "",
    ) -> None:
        """Train a click-through-rate model from a log and deploy it if it is blessed.

        Args:
            source: where the log comes from, one of `thinktwice data list`.
            source_path: file or folder of the log, for the sources that need one; for `log` also several, a line each.
            schema_path: schema file of the log, for the sources `log` and `parquet`.
            limit: read at most this many rows; 0 reads all.
            since: read impressions from this time on; empty for all.
            until: read impressions before this time; empty for all.
            data_seed: seed of a source that draws its rows (sim); part of the cache key of ingest.
            seed: seed of training.
            split: "time", "random", "column:NAME", "days:N" (the last N days are test) or "dates:FROM,FROM" (validation, test).
            split_seed: seed of a random split; part of the cache key of the training set.
            recipe: name of the training recipe, or the text of a recipe file.
            backbone: name of the model's architecture, or package.module:Class of your own; "" for the recipe's.
            pretraining: "none", "dgenctr" or "hetegenctr"; "" for the recipe's.
            checkpoints: folder or s3://BUCKET/FOLDER from which a killed training continues; "" for none.
            continue_from: bundle whose vocabularies and weights training continues, a folder or s3://BUCKET/FOLDER; "" for none.
            continue_version: hash of that bundle; part of the cache key of the training set, "" for any.
            test_time_mode: which extra work may ship, if validation proves a gain: "lean" (any within max_cost) or one mode by name.
            max_cost: limit for "lean": measured time of a request relative to the plain model.
            challenger: test-time mode of a challenger, packaged beside the champion for an experiment; "" for none.
            serving_namespace: namespace of a cluster in which the deployed model becomes a canary; "" for none.
            model_storage: s3://BUCKET/FOLDER of versions, to which the canary's model is copied.
            canary_percent: share of the canary, of the requests or the users.
            online_store: "sqlite" or "redis".
            redis_address: host:port of the Redis server, for the online store "redis".
            target: what deployment means: "local" (champion in state_dir) or "manifest" (an InferenceService besides).
            state_dir: folder of the champion.
            code_version: version of the installed code; part of every cache key, because KFP does not look into it.
            data_version: version of the files behind source_path and schema_path; part of the cache key of ingest.
        """
        with cleaned_up():
            # A cache key contains the path of the log, not its content; the data version represents the content.
            log = ingest(
                source=source,
                source_path=source_path,
                schema_path=schema_path,
                limit=limit,
                since=since,
                until=dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER if scheduled else until,
                seed=data_seed,
                code_version=code_version,
                data_version=data_version,
            )
            configure(log, "cpu")

            checked = validate(log=log.outputs["log"], code_version=code_version)
            configure(checked, "cpu")

            with dsl.If(checked.outputs["Output"] == True, name="log-is-valid"):  # noqa: E712  (a KFP expression)
                features = materialize(
                    clean=checked.outputs["clean"],
                    feature_version=log.outputs["feature_version"],
                    online_store=online_store,
                    redis_address=redis_address,
                    code_version=code_version,
                )
                with_registry(with_online_store(configure(features, "cpu"), profile), profile)

                rows = build_training_set(
                    clean=checked.outputs["clean"],
                    feature_store=features.outputs["feature_store"],
                    log=log.outputs["log"],
                    split=split,
                    seed=split_seed,
                    continue_from=continue_from,
                    continue_version=continue_version,
                    code_version=code_version,
                )
                configure(rows, "cpu")
                training_set = rows.outputs["training_set"]

                settings: dict[str, Any] = {
                    "training_set": training_set,
                    "recipe": recipe,
                    "backbone": backbone,
                    "checkpoints": checkpoints,
                    "seed": seed,
                    "code_version": code_version,
                }
                pretrained = train("pretrain", pretraining=pretraining, **settings)
                plain_model = train("finetune", **settings)
                pretrained_model = train("finetune", pretrained=model_of(pretrained), **settings)

                test_time = fit_test_time(
                    training_set=training_set,
                    plain=model_of(plain_model),
                    pretrained=model_of(pretrained_model),
                    recipe=recipe,
                    mode=test_time_mode,
                    max_cost=max_cost,
                    code_version=code_version,
                )
                configure(test_time, "cpu")

                candidate = evaluate(
                    training_set=training_set,
                    plain=model_of(plain_model),
                    pretrained=model_of(pretrained_model),
                    test_time=test_time.outputs["test_time"],
                    snapshot_id=log.outputs["snapshot_id"],
                    feature_version=log.outputs["feature_version"],
                    recipe=recipe,
                    backbone=backbone,
                    pretraining=pretraining,
                    mode=test_time_mode,
                    max_cost=max_cost,
                    seed=seed,
                    code_version=code_version,
                )
                configure(candidate, "cpu")

                blessed = bless(
                    training_set=training_set,
                    bundle=candidate.outputs["bundle"],
                    state_dir=state_dir,
                    code_version=code_version,
                )
                configure(blessed, "effect")

                with dsl.If(blessed.outputs["Output"] == True, name="model-is-blessed"):  # noqa: E712
                    archive = package(
                        bundle=candidate.outputs["bundle"],
                        blessing=blessed.outputs["blessing"],
                        code_version=code_version,
                    )
                    configure(archive, "cpu")

                    deployment = deploy(
                        archive=archive.outputs["archive"],
                        bundle=candidate.outputs["bundle"],
                        feature_store=features.outputs["feature_store"],
                        blessing=blessed.outputs["blessing"],
                        target=target,
                        state_dir=state_dir,
                        code_version=code_version,
                    )
                    # It fills a Redis again that has lost what a cached materialization wrote.
                    with_online_store(configure(deployment, "effect"), profile)

                    with dsl.If(serving_namespace != "", name="canary-is-wanted"):
                        canary = deploy_to_cluster(
                            model_uri=deployment.outputs["Output"],
                            namespace=serving_namespace,
                            storage=model_storage,
                            percent=canary_percent,
                            code_version=code_version,
                        )
                        configure(canary, "rollout")

                    with dsl.If(challenger != "", name="challenger-is-wanted"):
                        challenged = challenge(
                            training_set=training_set,
                            plain=model_of(plain_model),
                            pretrained=model_of(pretrained_model),
                            bundle=candidate.outputs["bundle"],
                            feature_store=features.outputs["feature_store"],
                            deployment=deployment.outputs["deployment"],
                            recipe=recipe,
                            mode=challenger,
                            state_dir=state_dir,
                            code_version=code_version,
                        )
                        configure(challenged, "effect")

    return ctr_training
