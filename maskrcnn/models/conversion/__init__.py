"""Weights of other libraries, converted and compared."""
