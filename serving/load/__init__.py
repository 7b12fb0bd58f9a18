"""Load on a running predictor: open and closed loop, latencies without coordinated omission, checked answers."""
