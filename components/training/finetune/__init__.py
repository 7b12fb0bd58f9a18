"""The step that fine-tunes a model."""
