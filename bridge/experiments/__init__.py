"""One folder a command: its options, its run, its result, its report."""
