"""Batched inference, metrics of the predictions with intervals, thresholds, and prediction tables."""
