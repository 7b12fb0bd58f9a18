"""The step ``validate``: check a log."""
