"""The gateway: a real Envoy that splits users over arms, and is the only door through which callers reach a predictor."""
