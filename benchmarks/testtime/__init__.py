"""The value of thinking twice: every mode, baseline and control on the same trunks, see `python -m benchmarks.testtime`."""
