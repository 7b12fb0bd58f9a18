"""Steps that turn clean rows into features and training rows."""
