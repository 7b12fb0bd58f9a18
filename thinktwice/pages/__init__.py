"""The one kit for HTML pages and charts: one style, nothing to load, no script."""
