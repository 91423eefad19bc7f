"""The update, the training loop, and its checkpoints and metrics."""
