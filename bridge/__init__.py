"""Measures the quantities of the alignment instability condition on real language models."""
