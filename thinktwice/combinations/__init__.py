"""Counts of combinations of values, in bounded memory."""
