"""Tools that read configs and runs and never train."""
