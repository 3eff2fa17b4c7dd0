"""Networks: their builders, their tensors, and the configurations that files of other projects hold."""
