"""Side-by-side timings against PyTorch; the package never imports this."""
