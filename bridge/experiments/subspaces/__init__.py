"""What `bridge.subspaces` runs."""
