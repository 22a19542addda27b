"""What the commands compute, apart from their options: each returns one JSON result."""
