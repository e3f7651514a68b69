"""What checkpoints call the weights of our models, and what their configurations say of them."""
