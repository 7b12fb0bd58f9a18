"""Roll-out of a model version in a Kubernetes cluster: canary, promotion and roll-back without a lost request."""
