"""The whole system in one command, on real data."""
