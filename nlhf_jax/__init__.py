"""Nash learning from human feedback: preferences as a game between language models, in JAX."""
