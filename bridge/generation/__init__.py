"""What a model says: responses drawn for the Fisher information, and texts generated."""
