"""What `bridge.fisher_overlap` runs."""
