"""The Kubernetes API over plain HTTP: one small client for every step and command that talks to a cluster."""
