"""What `bridge.activations` runs."""
