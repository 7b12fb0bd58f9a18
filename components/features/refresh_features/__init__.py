"""The step that brings the online values of served features up to date."""
