"""The ledger: every numbered claim of the theory, what is true of it, and a check that a machine runs."""
