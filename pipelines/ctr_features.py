"""The features pipeline: brings the online values of the served features up to date from the log, between two trainings.

It is run again and again, as a recurring run. A run that is repeated or was killed writes the same values.
"""

from functools import partial

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

import thinktwice
from components.choices import Profile
from components.data.ingest.component import ingest
from components.data.validate.component import validate
from components.features.refresh_features.component import refresh_features
from components.step import IMAGE
from pipelines.nodes import Nodes
from pipelines.profiles import (
    DEFAULT_NODES,
    DEFAULT_STATE_DIR,
    apply_profile,
    check_profile,
    pipeline_config,
    with_online_store,
)

NAME = "ctr-features"


def build_features_pipeline(
    profile: Profile, image: str = IMAGE, nodes: Nodes = DEFAULT_NODES, *, scheduled: bool = False
) -> GraphComponent:
    """The graph for one profile, every step in `image`, on `nodes`.

    A `scheduled` run reads the log until the time that it is scheduled for, whenever it really starts; `until` is not read then.

    Raises:
        ValueError: the profile is unknown.
    """
    check_profile(profile)
    configure = partial(apply_profile, profile=profile, image=image, nodes=nodes)

    @dsl.pipeline(
        name=NAME,
        description="Validate a log, bring the online values of the served features up to date.",
        pipeline_config=pipeline_config(profile),
    )
    def ctr_features(
        source: str = "log",
        source_path: str = "",
        schema_path: str = "",
        limit: int = 0,
        since: str = "",
        until: str = "",
        data_seed: int = 0,
        window_days: int = 0,
        state_dir: str = DEFAULT_STATE_DIR[profile],
        code_version: str = thinktwice.__version__,
        data_version: str = "",
    ) -> None:
        """Write the features of a log to the online store of the champion, with the champion's definitions.

        Args:
            source: where the log comes from, one of `thinktwice data list`.
            source_path: file or folder of the log; for `log` also several, a line each.
            schema_path: schema file of the log, the one that the champion was trained with.
            limit: read at most this many rows; 0 reads all.
            since: read impressions from this time on, as the training did; empty for all.
            until: read impressions before this time, and write rows that are valid before it; empty for all.
            data_seed: seed of a source that draws its rows (sim).
            window_days: write only rows of so many days before the end; 0 for all.
            state_dir: folder of the champion.
            code_version: version of the installed code; part of every cache key.
            data_version: version of the files behind source_path and schema_path; part of the cache key of ingest.
        """
        end = dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER if scheduled else until
        log = ingest(
            source=source,
            source_path=source_path,
            schema_path=schema_path,
            limit=limit,
            since=since,
            until=end,
            seed=data_seed,
            data_version=data_version,
            code_version=code_version,
        )
        configure(log, "cpu")

        checked = validate(log=log.outputs["log"], code_version=code_version)
        configure(checked, "cpu")

        with dsl.If(checked.outputs["Output"] == True, name="log-is-valid"):  # noqa: E712
            written = refresh_features(
                clean=checked.outputs["clean"],
                until=end,
                window_days=window_days,
                state_dir=state_dir,
                code_version=code_version,
            )
            with_online_store(configure(written, "effect"), profile)

    return ctr_features
