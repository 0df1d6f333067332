"""Mistral: LLaMA with a sliding window."""
