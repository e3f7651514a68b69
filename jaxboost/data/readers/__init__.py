"""One file of a user -> an array, exactly as it was stored, or an error that says the next step."""
