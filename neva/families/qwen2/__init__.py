"""Qwen2: LLaMA with biases on queries, keys and values."""
