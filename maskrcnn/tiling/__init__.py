"""Windows of large images, and the stitching of their detections."""
