"""Where prompts, responses and comparisons come from."""
