"""What the command line shows of long work: stage lines with progress bars, and tables."""
