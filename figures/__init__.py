"""Pictures of runs, one module each: they read a saved result and compute nothing."""
