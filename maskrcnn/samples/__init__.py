"""A few real images with ground truth, part of the package."""
