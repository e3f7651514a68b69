"""Batched inference, metrics of the predictions, thresholds, and prediction tables."""
