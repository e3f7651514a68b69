"""Tools that read configs and runs but never train."""
