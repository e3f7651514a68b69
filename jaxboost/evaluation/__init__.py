"""Predictions of a split and what they are worth: scores, intervals, thresholds."""
