"""What a predictor reports: metrics, logs, traces, the prediction log."""
