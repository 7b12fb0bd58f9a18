"""What the gateway costs and what it keeps while arms fail and routes change."""
