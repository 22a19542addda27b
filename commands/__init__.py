"""What every command shares, whatever it computes: run folders, errors of the user's input, progress.

Nothing here knows of the mathematics, of torch or of models.
"""
