"""Decoding of images to RGB pixels, and reading of rasters."""
