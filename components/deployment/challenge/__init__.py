"""The step ``challenge``: package the champion's weights with another test-time mode, for an experiment."""
