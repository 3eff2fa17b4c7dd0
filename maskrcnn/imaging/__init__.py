"""Bytes to RGB pixels, and rasters."""
