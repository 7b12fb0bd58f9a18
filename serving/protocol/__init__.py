"""What a predictor accepts and answers: requests, codecs, tensors, OpenAPI."""
