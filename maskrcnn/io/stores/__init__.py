"""Stores: local folders, S3, Google Cloud Storage, the web."""
