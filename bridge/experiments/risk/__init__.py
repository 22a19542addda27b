"""What `bridge.risk` runs."""
