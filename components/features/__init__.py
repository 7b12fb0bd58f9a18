"""Steps that convert clean rows to features and training rows."""
