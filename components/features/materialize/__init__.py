"""The step that fills the feature store."""
