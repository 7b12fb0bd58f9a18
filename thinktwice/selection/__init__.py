"""Selection of the test-time configuration that ships: candidates, their parameters, and the acceptance test."""
