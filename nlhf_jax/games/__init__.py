"""Tabular preference games: exact equilibria, and the ideal update of every algorithm.

This package does not depend on the rest, and knows nothing of language models.
"""
