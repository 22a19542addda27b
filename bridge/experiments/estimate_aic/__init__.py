"""What `bridge.estimate_aic` runs."""
