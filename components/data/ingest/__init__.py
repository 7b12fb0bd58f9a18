"""The step that reads a log."""
