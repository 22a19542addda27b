"""What `bridge.safety_subspaces` runs."""
