"""From stored images to batches: order, resizing, augmentation."""
