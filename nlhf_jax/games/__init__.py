"""Tabular preference games: exact equilibria, and every algorithm of the field on a matrix.

It stands on its own: nothing here knows of language models.
"""
