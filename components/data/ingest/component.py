"""Pipeline step ``ingest``: read a log from any source into a raw log folder and name the features it leads to."""

from typing import NamedTuple

from kfp.dsl import Dataset, Output

from components.step import step


@step
def ingest(
    source: str,
    source_path: str,
    schema_path: str,
    limit: int,
    seed: int,
    code_version: str,
    log: Output[Dataset],
    data_version: str = "",
    since: str = "",
    until: str = "",
) -> NamedTuple("Outputs", snapshot_id=str, feature_version=str):  # type: ignore[valid-type]
    """Read ``source`` into ``log``; empty paths mean the source's own.

    ``seed`` matters to sources that draw their rows. What a model is trained by (recipe, split, its own seed) is not asked
    for here, so that another model of the same log reuses this step and what follows from it alone. ``data_version`` stands for the content
    of the files in the cache key and does nothing else.
    """
    from thinktwice.data.feature_tables import feature_version
    from thinktwice.data.ingest import SCHEMA_FILE
    from thinktwice.data.ingest import ingest as read
    from thinktwice.schema import load_schema

    snapshot = read(source, source_path, schema_path, log.path, limit, seed, since=since, until=until)
    log.metadata.update(rows=snapshot.rows, unparsable_rows=snapshot.unparsable_rows, snapshot_id=snapshot.snapshot_id)
    if read_lines := snapshot.what_was_read():
        log.metadata["read"] = "; ".join(read_lines)
    schema = load_schema(f"{log.path}/{SCHEMA_FILE}")
    return snapshot.snapshot_id, feature_version(schema, snapshot.snapshot_id, code_version)
