"""Online features: sources, and readers that build rows from them."""
