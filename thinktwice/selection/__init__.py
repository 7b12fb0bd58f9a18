"""What training runs to choose what ships: candidates, their parameters, and the acceptance test."""
