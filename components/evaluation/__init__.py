"""Steps that decide what ships: fit the test-time engine, evaluate, bless."""
