"""What `bridge.utility` runs."""
