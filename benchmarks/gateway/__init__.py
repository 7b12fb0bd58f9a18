"""Cost of the gateway, and its behaviour while arms fail and routes change."""
