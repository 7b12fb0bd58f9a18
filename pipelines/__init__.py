"""The training pipeline, and running it locally or on a cluster."""
