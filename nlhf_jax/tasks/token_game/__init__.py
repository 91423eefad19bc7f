"""A token game: so few responses that the exact equilibrium of the language model is known."""
