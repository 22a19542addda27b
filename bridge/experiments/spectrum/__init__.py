"""What `bridge.spectrum` runs."""
