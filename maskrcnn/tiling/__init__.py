"""Windows of large images, and whole images of windows."""
