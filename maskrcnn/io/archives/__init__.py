"""Pictures inside archives: tar and zip, read where they lie, by ranges of bytes."""
