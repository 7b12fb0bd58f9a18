"""Rules of a log, the split into clean and quarantined rows, and the profile. Independent of Great Expectations."""
