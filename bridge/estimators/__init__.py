"""Exact numbers of one model on some samples."""
