"""What a predictor has served, against what it should have been (skew) and what it was trained on (drift)."""
