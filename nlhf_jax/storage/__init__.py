"""Files: JSON, whole-file writes, locks, and models on the Hugging Face hub."""
