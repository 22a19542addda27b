"""What `bridge.align` runs."""
