"""The fields of a run: declared once, checked once."""
