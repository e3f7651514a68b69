"""Plots as SVG for a page: their colours are the page's, light or dark, and the same figures give the same bytes."""
