"""Readers of checkpoint files and folders. Nothing here knows a model: tensors have names, shapes and values."""
