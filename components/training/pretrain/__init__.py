"""The step that pre-trains a model."""
