"""A frozen LLM layer as a booster for biomedical image classifiers, in JAX and Flax."""
