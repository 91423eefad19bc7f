"""The update, the training loop, and what it writes to disk."""
