"""Baselines without gradient training: features of images, and scikit-learn's classifiers on them."""
