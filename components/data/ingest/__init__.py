"""The step ``ingest``: read a log."""
