"""Intervals, tests of two arms, power, calibration and pooling, from labels and probabilities alone.

Items are the rows of a split. An item may belong to a group, its patient; resamples then draw patients. scipy.stats,
scikit-learn and statsmodels take seconds to import, so they are imported inside functions: a mistake in a config is
reported at once.
"""
