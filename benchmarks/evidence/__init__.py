"""The value of evidence: counters and retrieved outcomes over a tuned trunk, compared with a second trunk and trees."""
