"""Output of the command line: stage lines with progress bars, and tables."""
