"""The runs of a work folder: listed, compared and removed."""
