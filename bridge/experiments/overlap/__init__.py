"""What `bridge.overlap` runs."""
