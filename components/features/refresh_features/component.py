"""Pipeline step ``refresh_features``: rows of a later log in the online store of the champion."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.step import step


@step
def refresh_features(
    clean: Input[Dataset],
    until: str,
    window_days: int,
    state_dir: str,
    code_version: str,
    features: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Write the features of ``clean`` that are valid in the window ``[start, until)`` to the champion's Redis; read all of them back.

    Args:
        clean: clean log with all impressions that the features count.
        until: end of the window; "" for the midnight that closes the log's last day.
        window_days: the window starts so many days before its end; 0 for the log's first row.
        state_dir: folder of the champion, whose definitions are used.
        code_version: version of the installed code; not read.
        features: folder with the tables and ``refresh.json``.
    """
    from feature_repo.refresh import refresh
    from thinktwice.release.champion import require_champion

    store = require_champion(state_dir, "state_dir").feature_store_dir
    done = refresh(clean.path, store, features.path, until=until, window_days=window_days)
    features.metadata.update(feature_version=done.feature_version, start=done.start, end=done.end)
    for view in done.views:
        metrics.log_metric(f"keys_{view.name}", view.keys)
        metrics.log_metric(f"newer_online_{view.name}", view.newer)
