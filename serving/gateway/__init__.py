"""The gateway: a real Envoy that splits users over arms, and through which alone callers reach a predictor."""
