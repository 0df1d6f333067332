"""Phi-3 and Phi-4: LLaMA with joined matrices, and two sets of RoPE frequencies for short and long sequences."""
