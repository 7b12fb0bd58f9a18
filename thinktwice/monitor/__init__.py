"""Monitoring of served rows: against the feature store (skew) and against the training data (drift)."""
