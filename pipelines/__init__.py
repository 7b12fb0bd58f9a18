"""The training pipeline and where its tasks run."""
