"""What `bridge.onset` runs."""
