"""The experiment that trains a transformer on a game with few responses."""
