"""The step ``promote``: the canary of a cluster becomes its stable version."""
