"""Fine-tuning: plans, presets, the training itself."""
