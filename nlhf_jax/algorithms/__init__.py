"""Algorithms as records: who plays whom, what is minimised, how references move."""
