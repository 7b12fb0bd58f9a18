"""The step that joins, splits and encodes training rows."""
