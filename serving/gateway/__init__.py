"""The gateway: an Envoy that splits users over arms and is the only way to reach a predictor."""
