"""What `bridge.finetune` runs."""
