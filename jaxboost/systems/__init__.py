"""A config becomes a model and a plan for its weights."""
