"""Telemetry of the predictor: metrics, logs, traces, the prediction log."""
