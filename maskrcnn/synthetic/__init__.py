"""Generated images whose ground truth is known."""
