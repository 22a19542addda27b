"""A set becomes token samples; nothing here imports torch."""
