"""Checks of a model on generated images: whether its results are sound, and what a batch costs."""
