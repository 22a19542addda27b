"""Changes of weights: read, applied, decomposed, projected."""
