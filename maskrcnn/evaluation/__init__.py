"""Detections aligned with ground truth, matched, and scored."""
