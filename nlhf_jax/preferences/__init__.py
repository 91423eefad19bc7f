"""Judges, and the networks that learn to be one."""
