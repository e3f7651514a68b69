"""The folder of a run: what is in it, and the commands that fill it."""
