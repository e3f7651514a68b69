"""Rows that are expensive to make (decoded images, an encoder's tokens), kept on disk and mapped at the next start."""
