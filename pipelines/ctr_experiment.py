"""The experiment pipeline: one look at a running experiment. It is run again and again, as a recurring run or by cron.

A look that is repeated, or was killed, changes nothing twice: the record has one line for each evidence, and a decision is
applied until the record says that it is.
"""

from functools import partial

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

import thinktwice
from components.choices import Profile
from components.experiment.analyse.component import analyse
from components.experiment.apply.component import apply
from components.experiment.collect.component import collect
from components.experiment.decide.component import decide
from components.experiment.join.component import join
from components.step import IMAGE
from pipelines.nodes import Nodes
from pipelines.profiles import (
    DEFAULT_NODES,
    DEFAULT_RECORDS_DIR,
    DEFAULT_ROLLOUT_DIR,
    DEFAULT_STATE_DIR,
    DEFAULT_TARGET,
    apply_profile,
    check_profile,
    pipeline_config,
)

NAME = "ctr-experiment"


def build_experiment_pipeline(profile: Profile, image: str = IMAGE, nodes: Nodes = DEFAULT_NODES) -> GraphComponent:
    """The graph for one profile, every step in `image`, on `nodes`.

    Raises:
        ValueError: the profile is unknown.
    """
    check_profile(profile)
    configure = partial(apply_profile, profile=profile, image=image, nodes=nodes)

    @dsl.pipeline(
        name=NAME,
        description="Look at a running experiment: collect, join, analyse, decide, apply.",
        pipeline_config=pipeline_config(profile),
    )
    def ctr_experiment(
        name: str,
        access_logs: str,
        prediction_logs: str,
        clicks: str,
        window_seconds: float = 86_400.0,
        settle_seconds: float = 300.0,
        records_dir: str = DEFAULT_RECORDS_DIR[profile],
        target: str = DEFAULT_TARGET[profile],
        state_dir: str = DEFAULT_STATE_DIR[profile],
        rollout_dir: str = DEFAULT_ROLLOUT_DIR[profile],
        code_version: str = thinktwice.__version__,
    ) -> None:
        """Look at a running experiment and carry out the decision.

        Args:
            name: of the experiment, which was started before.
            access_logs: folder of the gateway's access logs.
            prediction_logs: folder of the prediction logs of all arms.
            clicks: folder of parquet files of clicks.
            window_seconds: seconds after an exposure within which a click counts.
            settle_seconds: seconds until every log has the rows of a request.
            records_dir: folder of the records of all experiments.
            target: "local" (files that servers and gateway of this machine follow) or "manifest" (files for a cluster).
            state_dir: folder of the champion and the challengers.
            rollout_dir: folder of the roll-out.
            code_version: version of the installed code; part of every cache key.
        """
        logs = collect(
            name=name,
            records_dir=records_dir,
            access_logs=access_logs,
            prediction_logs=prediction_logs,
            clicks=clicks,
            settle_seconds=settle_seconds,
            code_version=code_version,
        )
        configure(logs, "effect")

        joined = join(
            logs=logs.outputs["logs"],
            window_seconds=window_seconds,
            records_dir=records_dir,
            code_version=code_version,
        )
        configure(joined, "effect")  # it keeps what the next look needs beside the record

        evidence = analyse(logs=logs.outputs["logs"], joined=joined.outputs["joined"], code_version=code_version)
        configure(evidence, "cpu")

        decision = decide(
            logs=logs.outputs["logs"],
            evidence=evidence.outputs["evidence"],
            records_dir=records_dir,
            code_version=code_version,
        )
        configure(decision, "effect")

        with dsl.If(decision.outputs["Output"] != "hold", name="something-is-decided"):
            applied = apply(
                name=name,
                action=decision.outputs["Output"],
                records_dir=records_dir,
                target=target,
                state_dir=state_dir,
                rollout_dir=rollout_dir,
                code_version=code_version,
            )
            configure(applied, "effect")

    return ctr_experiment
