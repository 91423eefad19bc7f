"""Experiments: a package for each kind, and the modules that all kinds share."""
