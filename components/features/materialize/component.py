"""Pipeline step ``materialize``: feature tables, Feast registry and a filled online store from a clean log."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components.step import step


@step
def materialize(
    clean: Input[Dataset],
    feature_version: str,
    online_store: str,
    redis_address: str,
    code_version: str,
    feature_store: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Build the feature store of ``feature_version``; ``online_store`` is ``sqlite`` or ``redis``."""
    from feature_repo.shared_registry import publish, registry_url
    from feature_repo.store import build

    info = build(
        clean.path,
        feature_store.path,
        feature_version=feature_version,
        online=online_store,
        redis_address=redis_address,
    )
    if url := registry_url():
        publish(feature_store.path, url, feature_store.uri)
    feature_store.metadata.update(
        feature_service=info.feature_service,
        feature_version=info.feature_version,
        online_store=info.online_store,
        start=info.start,
        end=info.end,
        code_version=code_version,
    )
    for view in info.views:
        metrics.log_metric(f"rows_{view.name}", view.rows)
    metrics.log_metric("online_values_compared", info.compared_values)
