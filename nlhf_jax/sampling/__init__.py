"""Sampling responses from mixtures of slots: prefill, decode, one program for each size."""
