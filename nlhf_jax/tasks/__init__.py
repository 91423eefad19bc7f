"""Embedded tasks whose preferences are known, for learning and for tests."""
