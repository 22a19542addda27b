"""Many runs from one settings file."""
