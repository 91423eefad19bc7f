"""Data: from files of prompts, responses and comparisons to batches of tokens."""
