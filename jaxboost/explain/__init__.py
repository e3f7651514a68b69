"""Pictures that explain finished runs: where a model looks, and how its features lie."""
