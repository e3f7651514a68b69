"""From stored images to batches: order, resizing, augmentation."""

# The choices of train.sampling and train.last_batch; here, because `batches` imports grain, which takes a second.
SAMPLINGS = ("uniform", "balanced")
LAST_BATCHES = ("drop", "keep")
