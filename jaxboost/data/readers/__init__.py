"""Readers: each turns one user file into an array with the stored values, or raises an error that names the fix."""
