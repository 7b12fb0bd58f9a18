"""Load tests of a running predictor: open and closed loop, latencies without coordinated omission, validated responses."""
