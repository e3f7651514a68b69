"""Arrays -> batches: resizing, augmentation, order."""
