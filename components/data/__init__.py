"""Steps that bring a log in and check it."""
