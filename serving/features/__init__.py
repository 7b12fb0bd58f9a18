"""Online features: the sources, and the readers that make rows of them."""
