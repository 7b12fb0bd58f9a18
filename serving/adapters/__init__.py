"""Adapters of the service to the two servers: TorchServe and KServe."""
