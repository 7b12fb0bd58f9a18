"""Rules of a log, the split into clean and quarantined rows, and the profile. Knows no Great Expectations."""
