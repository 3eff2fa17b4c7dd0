"""The dataset, augmentation, losses, and the trainer."""
