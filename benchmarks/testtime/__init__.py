"""What thinking twice is worth: every mode, baseline and control on the same trunks, see `python -m benchmarks.testtime`."""
