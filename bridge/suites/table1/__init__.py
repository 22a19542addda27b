"""What `bridge.table1` runs."""
