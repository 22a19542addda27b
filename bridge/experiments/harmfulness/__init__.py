"""What `bridge.harmfulness` runs."""
