"""What `bridge.study` runs."""
