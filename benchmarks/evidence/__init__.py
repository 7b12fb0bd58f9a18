"""What evidence is worth: counters and retrieved outcomes over a tuned trunk, beside a second trunk and trees."""
