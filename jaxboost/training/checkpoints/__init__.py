"""The checkpoints of a run: written, verified, read."""
