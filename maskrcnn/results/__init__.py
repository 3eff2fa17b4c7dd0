"""A finished run: read, exported, verified, compared."""
