"""Updates, the loop, and what it leaves on disk."""
