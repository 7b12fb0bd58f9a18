"""Demo of the whole system in one command, on real data."""
