"""Evaluation of any policies under any judges."""
