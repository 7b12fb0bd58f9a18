"""Steps that ingest and validate a log."""
