"""The two servers around the service: TorchServe and KServe."""
