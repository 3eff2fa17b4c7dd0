"""Networks, their weights, and the forward pass."""
