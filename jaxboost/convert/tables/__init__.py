"""Tensor names and configurations of checkpoints -> weights and arguments of our models."""
