"""Inference protocol of the predictor: requests, codecs, tensors, OpenAPI."""
