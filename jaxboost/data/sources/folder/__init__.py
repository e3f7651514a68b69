"""A user's own folder as a data set: its files, labels, patients and splits."""
