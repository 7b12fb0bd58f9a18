"""The step that checks a log."""
